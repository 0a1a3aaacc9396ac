# Each target does all of its own set-up on a bare Debian 12 with cargo: see scripts/.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
# A user's own settings don't change what is built.
export CARGO_TERM_PROGRESS_WHEN ?= auto
PROFILE ?= dev
# A release has no path of the machine that built it.
release_flags = --remap-path-prefix=$(or $(CARGO_HOME),$(HOME)/.cargo)/registry/src=/registry
OUT = target/$(if $(filter dev,$(PROFILE)),debug,$(PROFILE))

.PHONY: help charts conformance demo test test-kernels test-kubernetes test-interop fuzz images images-twice bench bench-smoke bench-instructions bench-control bench-l7 lint bpf build clean-lab

help: ## Show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 20

# With the programs of the tests, in which what moves bytes is optimised.
demo: machine packages-lab packages-demo build ## Run the mesh with nginx, an API, PostgreSQL and Redis, and check each claim
	@$(OUT)/seine-demo

test: machine packages-lab packages-demo packages-test build ## Run all tests, also those with a lab (root)
	@scripts/test.sh

test-kernels: packages-build packages-kernels ## Load and try the eBPF programs on Debian's 6.1 and 6.12 kernels in qemu
	@tests/kernels/run.sh

test-kubernetes: machine packages-lab packages-kubernetes packages-build ## Build Kubernetes and images, and test on two real nodes (root; from nothing 25 min)
	@scripts/test-kubernetes.sh

conformance: machine packages-lab packages-kubernetes packages-build ## Run the Gateway API's suite on two real nodes, with the mesh and without (root)
	@tests/conformance/run.sh

test-interop: packages-interop packages-build ## Test with others' software on the wire: a plain gRPC client reads the control plane
	@scripts/test-interop.sh

fuzz: packages-build ## Run each fuzz target for some seconds
	@tests/fuzz/run.sh 6

bench: machine packages-lab ## Measure beside direct TCP, and beside the node proxy that SEINE_BENCH_PEER names
	@$(MAKE) --no-print-directory build PROFILE=release
	@target/release/seine-bench compare
	@$(MAKE) --no-print-directory bench-instructions

bench-control: packages-build ## Measure the control plane alone: 1,000 simulated node proxies, 100,000 workloads (12 GB)
	@$(MAKE) --no-print-directory build PROFILE=release
	@target/release/seine-bench control

bench-l7: machine packages-lab packages-l7 ## Measure the waypoint beside Envoy: HTTP/1.1, HTTP/2, gRPC, bodies, memory, routes
	@$(MAKE) --no-print-directory build PROFILE=release
	@SEINE_BENCH_ENVOY=$$(scripts/envoy.sh) target/release/seine-bench l7

# The figures mean nothing; that there is one in each row does.
bench-smoke: machine packages-lab build ## Measure everything once and shortly
	@$(OUT)/seine-bench compare --rounds 1 --seconds 0.2

bench-instructions: packages-build packages-instructions ## Count the instructions of the HBONE path with callgrind
	@scripts/bench-instructions.sh

lint: packages-build ## Format, clippy, rustdoc and cargo-deny, warnings as errors
	@scripts/lint.sh

charts: packages-charts ## Lint the charts, validate every object strictly, run misconfiguration scanners
	@deploy/check.sh

images: packages-build ## Build the images as OCI layouts, with bills of materials and provenance
	@scripts/images.sh

images-twice: packages-build ## Build the images, build them again elsewhere, and compare the digests
	@scripts/images.sh --twice

bpf: packages-build packages-bpf ## Build the eBPF object and compare it with the committed one
	@bpf/build.sh --check

ifneq ($(PROFILE),dev)
build: export RUSTFLAGS = $(release_flags)
endif
build: packages-build ## Build every program
	@echo "building (cargo, profile $(PROFILE)); from nothing this takes minutes"
	@cargo build --locked --workspace --exclude seine-fuzz --bins --profile $(PROFILE)

clean-lab: ## Remove whatever labs left on this machine
	@scripts/clean-lab.sh

.PHONY: machine rust
machine:
	@scripts/check-machine.sh
rust:
	@scripts/check-rust.sh
# Whatever cargo builds needs both.
packages-build: rust
packages-%:
	@scripts/packages.sh $*
