# make demo    see it work: a client, a gateway and backends in network namespaces
# make test    everything that is tested, scenarios included (as root)

SHELL := /bin/bash
.DEFAULT_GOAL := help
PACKAGES := clang llvm m4 libelf-dev zlib1g-dev pkg-config libbpf-dev iproute2 ethtool \
            nginx-light dnsmasq-base dnsutils curl iperf3 iputils-ping procps
CARGO ?= cargo
TARGET := $(or $(CARGO_TARGET_DIR),target)
STAY ?=
DESTDIR ?=

.PHONY: help setup build release install deny demo test lint loom scenarios clean

help: ## what can be made
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 20

setup: ## installs what building and testing need (Debian packages; as root)
	@deploy/setup.sh $(PACKAGES)

build: setup ## builds the binary
	$(CARGO) build --locked --workspace --bins

release: setup ## builds the optimised binary, target/release/millrace
	$(CARGO) build --locked --release -p millrace-agent --bin millrace

install: release ## installs binary and systemd unit below DESTDIR; configuration goes to /etc/millrace
	install -D -m 755 $(TARGET)/release/millrace $(DESTDIR)/usr/bin/millrace
	install -D -m 644 deploy/systemd/millrace.service $(DESTDIR)/etc/systemd/system/millrace.service

deny: ## licences and sources of dependencies; needs cargo-deny (cargo install --locked cargo-deny)
	$(CARGO) deny check

demo: setup ## runs Millrace as a user would and shows what it does; STAY=1 leaves it up
	$(CARGO) build --locked --workspace --bins
	STAY=$(STAY) $(TARGET)/debug/demo

lint: ## formatting, clippy and the links of documentation
	$(CARGO) fmt --all --check
	$(CARGO) clippy --locked --workspace --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --locked --workspace --no-deps

test: setup ## runs every test; needs root for the scenarios and says so
	@[ "$$(id -u)" = 0 ] || { echo "make test: the scenarios need root (network namespaces, AF_XDP): run 'sudo make test'" >&2; exit 1; }
	$(MAKE) lint
	$(CARGO) build --locked --workspace --bins
	$(CARGO) test --locked --workspace --exclude millrace-tests
	$(MAKE) loom scenarios

loom: ## model-checks publish, wake-up and the owner directory
	RUSTFLAGS="--cfg loom --cfg crossbeam_loom" CARGO_TARGET_DIR=$(TARGET)/loom \
	    $(CARGO) test --locked -p millrace-publish -p millrace-lb --test 'loom*'

scenarios: ## the network-namespace scenarios alone (as root)
	$(CARGO) build --locked --workspace --bins
	$(CARGO) test --locked -p millrace-tests -- --test-threads=1

clean: ## removes what was built
	$(CARGO) clean
