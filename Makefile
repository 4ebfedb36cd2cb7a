# `make test` installs what is missing and passes every test.
.PHONY: test deps
deps:
	@dpkg -s libseccomp-dev >/dev/null 2>&1 || { apt-get update -q && apt-get install -y -q libseccomp-dev; }
test: deps
	cargo fmt --all --check
	cargo test --workspace --locked
