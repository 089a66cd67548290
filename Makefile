# make demo    see it work: a client, a gateway and backends in network namespaces
# make test    everything that is tested, scenarios included (as root)
# make bench   what it costs, measured here (as root)

SHELL := /bin/bash
.DEFAULT_GOAL := help
PACKAGES := clang llvm m4 libelf-dev zlib1g-dev pkg-config libbpf-dev iproute2 ethtool \
            nftables nginx-light dnsmasq-base dnsutils curl iperf3 iputils-ping iputils-tracepath traceroute coturn procps \
            python3-scapy libusrsctp-dev openssl runc haproxy
BENCH_PACKAGES := valgrind
# Cases of millrace-bench in the order they run, and what they are told.
CASES ?= core setup tables scale wire tcp latency watch
export core_FLAGS ?= --floor --pages base,huge --shapes tcp,tcp6,udp --flows 1000,100000,1000000
export setup_FLAGS ?= --pages base,huge
BENCH_FLAGS ?=
# Targets of `make fuzz`, and how long each.
FUZZ ?= parse process associations fragments flow-file manifests configuration
export FUZZ_SECONDS ?= 60
CARGO ?= cargo
TARGET := $(or $(CARGO_TARGET_DIR),target)
STAY ?=
DESTDIR ?=

.PHONY: help setup kubelab build release install deny demo test lint loom scenarios fuzz bench-setup bench budget clean

help: ## what can be made
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 20

setup: ## installs what building and testing need (Debian packages; as root)
	@deploy/setup.sh $(PACKAGES)

kubelab: ## builds the Kubernetes control plane and Helm that scenarios run against (some minutes, once; needs Go 1.26)
	@tests/kubelab/build.sh >/dev/null
	@tests/helm/build.sh >/dev/null

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

test: setup kubelab ## runs every test; needs root for the scenarios and says so
	@[ "$$(id -u)" = 0 ] || { echo "make test: the scenarios need root (network namespaces, AF_XDP): run 'sudo make test'" >&2; exit 1; }
	$(MAKE) lint
	$(CARGO) build --locked --workspace --bins
	$(CARGO) test --locked --workspace --exclude millrace-tests
	$(MAKE) loom budget scenarios

loom: ## model-checks publish, wake-up and the owner directory
	RUSTFLAGS="--cfg loom --cfg crossbeam_loom" CARGO_TARGET_DIR=$(TARGET)/loom \
	    $(CARGO) test --locked -p millrace-publish -p millrace-lb --test 'loom*'

scenarios: kubelab ## the network-namespace scenarios alone (as root)
	$(CARGO) build --locked --workspace --bins
	$(CARGO) test --locked -p millrace-tests --no-fail-fast -- --test-threads=1

fuzz: setup ## fuzzes every target for FUZZ_SECONDS (60); FUZZ="parse process" some; new inputs are kept under target/fuzz
	@tests/fuzz/run.sh "$(TARGET)/fuzz" $(FUZZ)

bench-setup: setup ## installs what benchmarks need beyond that
	@deploy/setup.sh $(BENCH_PACKAGES)

bench: bench-setup kubelab ## measures it (as root, some minutes); CASES="core tcp" some cases, BENCH_FLAGS="--json --plot FOLDER"
	@[ "$$(id -u)" = 0 ] || { echo "make bench: needs root (network namespaces, AF_XDP): run 'sudo make bench'" >&2; exit 1; }
	$(CARGO) build --locked --release -p millrace-agent -p millrace-bench --bin millrace --bin millrace-bench
	@for case in $(CASES); do flags=$${case}_FLAGS; $(TARGET)/release/millrace-bench $$case $${!flags} $(BENCH_FLAGS) || exit 1; done

budget: bench-setup ## counts instructions a packet (callgrind) and holds them against bench/budget.json
	$(CARGO) build --locked --release -p millrace-bench --bin millrace-bench
	$(TARGET)/release/millrace-bench budget bench/budget.json

clean: ## removes what was built
	$(CARGO) clean
