//! `coracle-control`.

fn main() {}
