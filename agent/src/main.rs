//! `coracle`: the node agent, its helper and its command line, in one binary.

mod config;
mod logging;

fn main() {
    logging::start();
}
