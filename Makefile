# `make run` shows a pod on this machine, `make test` passes every test: both install what is missing first.

CARGO ?= cargo
# Debian packages: to build, and what the tests make images of, serve them with, and mount.
PACKAGES = build-essential pkg-config libseccomp-dev busybox-static lighttpd docker-registry e2fsprogs mount
# The shim is linked statically and without relocations: that is most of its memory.
SHIM_TARGET = $(shell rustc -vV | sed -n 's/^host: //p')
SHIM_FLAGS = -C target-feature=+crt-static -C relocation-model=static

.PHONY: all build run test check deny bench sim powercut deps rust

all: build

# Installs only what is missing, and only then needs root and a network.
deps: rust
	@missing=; for p in $(PACKAGES); do dpkg -s $$p >/dev/null 2>&1 || missing="$$missing $$p"; done; \
	if [ -n "$$missing" ]; then \
	    echo "installing$$missing"; \
	    apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends $$missing; \
	fi

rust:
	@command -v $(CARGO) >/dev/null || { \
	    (apt-get update -q && apt-get install -y -q rustup && rustup default stable) || \
	    { echo "coracle needs Rust 1.90 or newer: install it from https://rustup.rs"; exit 1; }; }

# target/release: coracle and coracle-shim side by side, as they are installed.
build: deps
	$(CARGO) build --release --locked -p coracle
	RUSTFLAGS="$(SHIM_FLAGS)" $(CARGO) build --release --locked -p coracle-shim \
	    --target $(SHIM_TARGET) --target-dir target/static
	cp target/static/$(SHIM_TARGET)/release/coracle-shim target/release/coracle-shim
	@ls -l target/release/coracle target/release/coracle-shim

# Ctrl-C ends it and leaves nothing; DEMO_EXIT=1 ends it once the pod has answered.
run: build
	$(CARGO) build --release --locked -p coracle-tests --bin demo
	CORACLE_BIN_DIR=$(CURDIR)/target/release target/release/demo

test: check deny
	$(CARGO) build --workspace --locked
	$(CARGO) test --workspace --locked

check: deps
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets --locked -- -D warnings

# The advisory database may be out of reach; licences, bans and sources need no network.
deny: deps
	@command -v cargo-deny >/dev/null || $(CARGO) install --locked cargo-deny
	$(CARGO) deny --locked check licenses bans sources
	$(CARGO) deny --locked check advisories || echo "advisories were not checked: see above"

# Figures against runc and crun on this machine, as a table and in target/bench.json.
bench: build
	@for p in runc crun; do dpkg -s $$p >/dev/null 2>&1 || apt-get install -y -q --no-install-recommends $$p; done
	$(CARGO) build --release --locked -p coracle-tests --bin bench
	CORACLE_BIN_DIR=$(CURDIR)/target/release target/release/bench target/bench.json

# Longer than `make test` does.
sim:
	CORACLE_SIM_SEEDS=100000 $(CARGO) test --release --locked -p coracle-pod --test simulator -- --nocapture

powercut:
	CORACLE_POWERCUT_ROUNDS=300 $(CARGO) test --locked -p coracle-store --test crash power -- --nocapture
