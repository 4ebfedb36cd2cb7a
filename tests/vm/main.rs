//! Tests on machines that boot: systemd, cgroup v2, packages, reboots, power cuts. `make test-vm`, `make test-arm` and
//! `make test-armhf` run them; `CORACLE_VM_ARCH` names the machine of all but [`cgroup2`].

mod cgroup2;
mod join;
mod power;
mod smoke;
mod unfit;
mod unit;
