# Two commands on a fresh machine: `make demo` shows the node at work, `make test` checks it.
# Every goal does the set-up it needs; nothing has to be run first.

CARGO ?= cargo
export CARGO_TERM_COLOR ?= auto

.PHONY: help setup demo test plugins lint bench soak clean

help: ## this list
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' Makefile

setup: ## what a bare machine lacks: a C compiler, cargo, the wasm32 target
	@.ci/setup

plugins: setup ## guests -> target/plugins/NAME.wasm
	$(CARGO) run --quiet --package tenon-build

demo: setup ## two nodes: catch-up, plugins swapped on the way, a ping and its answer
	$(CARGO) build --release
	$(CARGO) run --quiet --release --package tenon-build
	target/release/tenon demo $(ARGS)

test: plugins ## all tests of the workspace
	$(CARGO) test --workspace

lint: ## formatting and clippy, warnings are errors
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets -- -D warnings

bench: plugins ## measures, prints a table, writes target/bench.json
	$(CARGO) bench --package tenon $(ARGS)

soak: plugins ## the long form: thousands of kill -9, power losses and failing disks, fleets, ten thousand random reorgs
	TENON_TEST_KILLS=1000 $(CARGO) test --workspace --test crash -- --nocapture
	TENON_TEST_KILLS=1000 TENON_TEST_REORGS=10000 TENON_TEST_REPLAYS=10000 TENON_TEST_READS=200000 \
		$(CARGO) test --workspace --test forks -- --nocapture
	TENON_TEST_KILLS=1000 $(CARGO) test --workspace --test kills -- --nocapture
	TENON_TEST_LOSSES=10000 TENON_TEST_FAULTS=1600 \
		$(CARGO) test --workspace --test disk -- --nocapture
	TENON_TEST_SEEDS=5000 $(CARGO) test --workspace --test fleet -- --nocapture

clean: ## everything built
	$(CARGO) clean
