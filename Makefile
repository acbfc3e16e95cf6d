# Every target installs what it misses and builds with one profile, so RocksDB is compiled once.

CARGO ?= cargo
SUDO := $(shell [ "$$(id -u)" = 0 ] || echo sudo)
export PATH := $(PATH):/usr/sbin:/sbin
TARGET_DIR := $(or $(CARGO_TARGET_DIR),target)
SPARE := $(TARGET_DIR)/release/spare

.PHONY: help setup build demo test bench payloads scale mutants lint

help:
	@echo "make demo    a whole storage network on this machine: put, kill, damage, get, recover, pay"
	@echo "make test    all tests"
	@echo "make bench   speeds, as ratios to physical limits measured in the same run"
	@echo "make payloads programs for measuring the sandbox; downloads a compiler and a bundler once"
	@echo "make scale   a 3 GiB file over 30 providers, with memory figures"
	@echo "make mutants whether the tests notice each rule of the market that is left out"
	@echo "make lint    formatting and clippy"
	@echo "make build   the program, in $(SPARE)"

# The bindings of RocksDB are generated with libclang; RocksDB itself and AWS-LC need a C and C++ compiler.
# The tests behind NATs build networks with ip and nft, which Debian keeps in /usr/sbin.
setup:
	@if [ -z "$$LIBCLANG_PATH" ] && ! find /usr/lib /usr/local/lib -name 'libclang.so*' -o -name 'libclang-[0-9]*.so*' 2>/dev/null | grep -q .; then \
	  echo "installing libclang-dev"; \
	  $(SUDO) apt-get update -qq && $(SUDO) apt-get install -y -qq --no-install-recommends libclang-dev >/dev/null; \
	fi
	@if ! command -v ip >/dev/null || ! command -v nft >/dev/null; then \
	  echo "installing iproute2 and nftables"; \
	  $(SUDO) apt-get update -qq && $(SUDO) apt-get install -y -qq --no-install-recommends iproute2 nftables >/dev/null; \
	fi

build: setup
	$(CARGO) build --release --workspace --all-targets

# The demo stores the program itself and an archive of this repository. `make demo ARGS=--keep` leaves it running.
demo: build
	@archive=$$(mktemp -d)/repository.tar; trap 'rm -r "$$(dirname "$$archive")"' EXIT; \
	tar --exclude=./target --exclude=./.git -cf "$$archive" . && $(SPARE) demo "$$archive" $(ARGS)

test: build
	$(CARGO) test --release --workspace --no-fail-fast

bench: build
	$(TARGET_DIR)/release/bench
	@if [ -e $(PAYLOADS) ]; then SPARE_PAYLOADS=$(PAYLOADS) $(CARGO) bench -p spare-sandbox --bench factors; \
	else echo "The sandbox's factors need real programs: make payloads, once."; fi

# Kept outside of the tree, so that a fresh clone need not download them again.
PAYLOADS := $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/spare/payloads

payloads:
	@sh sandbox/benches/payloads.sh $(PAYLOADS)
	@echo "SPARE_PAYLOADS=$(PAYLOADS) $(CARGO) bench --workspace --bench factors"

scale: build
	$(TARGET_DIR)/release/scale

mutants: build
	$(TARGET_DIR)/release/mutants

lint: setup
	$(CARGO) fmt --all --check
	$(CARGO) clippy --release --workspace --all-targets -- -D warnings
