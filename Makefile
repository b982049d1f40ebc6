# Sampan: `make` explains each target.
.DEFAULT_GOAL := help
.PHONY: help deps build guest kernel demo test test-arm64 test-tuned nightly fuzz lint proto bench install clean

# Of this machine, as Go names it.
HOST    := $(patsubst aarch64,arm64,$(patsubst x86_64,amd64,$(shell uname -m)))
# Of the guest; its kernel: stock, which is Debian's, or tuned.
ARCH    ?= $(HOST)
KERNEL  ?= stock
PREFIX  ?= $(or $(if $(filter 0,$(shell id -u)),/usr/local),$(HOME)/.local)
BUILD   := $(shell git describe --always --dirty 2>/dev/null || echo unknown)
LDFLAGS := -s -w -X main.build=$(BUILD)

# Debian packages that building and testing need. QEMU is all that running
# needs. KERNEL_DEPS are for `make kernel` alone.
QEMU_amd64 := qemu-system-x86
QEMU_arm64 := qemu-system-arm
RUN_DEPS   := $(QEMU_$(HOST)) busybox-static
BUILD_DEPS := xz-utils debian-archive-keyring ca-certificates
TEST_DEPS  := inotify-tools openssh-client docker-registry erofs-utils e2fsprogs strace tmux attr
KERNEL_DEPS := gcc libc6-dev binutils make flex bison bc perl libelf-dev xz-utils
# What makes the images of a nightly test.
FOREIGN_DEPS := skopeo umoci buildah
DEPS       ?= $(RUN_DEPS) $(BUILD_DEPS) $(TEST_DEPS)

help: ## Explain the targets
	@sed -n 's/^\([a-z0-9-]*\):.*## \(.*\)/\1\t\2/p' $(MAKEFILE_LIST) | expand -t 12

deps: ## Install the prerequisites through apt; nothing when they are there
	@missing=; for p in $(DEPS); do \
	  dpkg-query -W -f '$${db:Status-Status}' $$p 2>/dev/null | grep -qx installed || missing="$$missing $$p"; done; \
	if [ -n "$$missing" ]; then \
	  sudo=; if [ "$$(id -u)" != 0 ]; then sudo=sudo; fi; \
	  if [ -n "$$sudo" ] && ! command -v sudo >/dev/null; then \
	    echo "These packages are missing, and there is no sudo. As root: apt-get install$$missing" >&2; exit 1; fi; \
	  echo "Installing$$missing: the virtual machine's hypervisor, and what building and the tests use."; \
	  if [ -n "$$sudo" ]; then echo "Only this step needs root; sudo may ask for your password."; fi; \
	  $$sudo apt-get update -q && $$sudo env DEBIAN_FRONTEND=noninteractive apt-get install -qy -o DPkg::Lock::Timeout=120 --no-install-recommends $$missing; \
	fi

build: ## Build sampan and sampand into bin/
	CGO_ENABLED=0 go build -trimpath -ldflags "$(LDFLAGS)" -o bin/ ./cmd/sampan ./cmd/sampand

guest: $(if $(filter tuned,$(KERNEL)),kernel) ## Make the guest bundle: dist/guest-$(ARCH); KERNEL=tuned: with our own kernel
	go run ./kernel/mkguest -arch $(ARCH) -kernel $(KERNEL) -build "$(BUILD)"

kernel: ## Build the tuned kernel from Debian's source; a quarter of an hour, once
	@$(MAKE) --no-print-directory deps DEPS="$(KERNEL_DEPS) $(BUILD_DEPS)"
	go run ./kernel/mkkernel -arch $(ARCH)

demo: ## A tour of Sampan: boot, run, publish, share, clean up
	@began=$$(date +%s) && \
	$(MAKE) --no-print-directory deps DEPS="$(RUN_DEPS) $(BUILD_DEPS)" && installed=$$(date +%s) && \
	$(MAKE) --no-print-directory build guest && go build -o bin/ ./cmd/sampan-demo && built=$$(date +%s) && \
	bin/sampan-demo -bin bin -before "install=$$((installed - began))s" -before "build=$$((built - installed))s"

# A Debian root for the tests' nginx image; the list of packages is its name.
dist/root-nginx:
	go run ./kernel/mkroot -out $@ base-files base-passwd coreutils dash nginx-light

# The real docker client, where the machine has none. Debian 12 has no package
# of the client alone.
dist/root-docker:
	go run ./kernel/mkroot -out $@ docker-cli base-files

# What TestApplications uses through networks: servers with their clients.
dist/root-apps:
	go run ./kernel/mkroot -out $@ base-files base-passwd coreutils dash redis-server postgresql bind9-dnsutils

# What TestRealWork works with, beside these.
dist/root-work:
	go run ./kernel/mkroot -out $@ base-files base-passwd coreutils dash findutils tar git make gcc libc6-dev sqlite3

# Compose, for the tests.
dist/root-compose:
	go run ./kernel/mkroot -out $@ docker-compose base-files

# What the end-to-end tests make images of.
ROOTS := dist/root-nginx dist/root-crun dist/root-tini dist/root-apps dist/root-compose $(if $(shell command -v docker),,dist/root-docker)

# gotestsum names every skipped test with its reason, which go test keeps to itself.
test: deps build guest $(ROOTS) ## Every test, unit and real VM
	go vet ./...
	go tool gotestsum --format pkgname -- -count=1 -timeout 40m ./...
	@$(MAKE) --no-print-directory fuzz FUZZTIME=2s FUZZDIR=./host/image

# All fuzzers for 30 s, images of other tools (as root), and the end-to-end tests
# in full, as an ordinary user: every point to be killed at, 100 random
# kills, 100 prefixes of a disk, 5 minutes of churn, 1,000 replaced programs,
# 200,000 inodes of a share; redis, postgresql, git, make, sqlite. SAMPAN_SEED=N repeats
# the random ones.
nightly: deps build guest $(ROOTS) dist/root-work ## Fuzzers, and the end-to-end tests in full: hours
	SAMPAN_SHARE_INODES=200000 go test -count=1 -v -run TestManyInodes ./host/share
	SAMPAN_NIGHTLY=1 go test -count=1 -v -timeout 5h $(if $(filter 0,$(shell id -u)),-run '^TestAsOrdinaryUser$$',) ./cmd/sampan/e2e
	SAMPAN_NIGHTLY=1 go test -count=1 -v -timeout 10m -run '^TestMemory$$' ./cmd/sampan-agent
	SAMPAN_NIGHTLY=1 go test -count=1 -v -timeout 30m -run '^TestGuest$$' ./guest/runtime
	@$(MAKE) --no-print-directory deps DEPS="$(FOREIGN_DEPS)"
	SAMPAN_NIGHTLY=1 go test -count=1 -v -timeout 30m -run '^TestForeignImages$$' ./cmd/sampan/e2e
	@$(MAKE) --no-print-directory fuzz FUZZTIME=30s
	$(if $(filter amd64,$(HOST)),@$(MAKE) --no-print-directory test-tuned)

test-arm64: ## The drivers' conformance suite with an arm64 guest, emulated here
	@$(MAKE) --no-print-directory deps DEPS="$(BUILD_DEPS) $(QEMU_arm64)"
	@$(MAKE) --no-print-directory guest ARCH=arm64
	SAMPAN_GUEST=$(CURDIR)/dist/guest-arm64 go test -count=1 -timeout 20m -run '^TestConformance$$' -v ./vm/qemu

# What depends on the kernel: the drivers, networks, ports, shares, the clock, faults.
TUNED := TestScripts|TestPorts|TestShare|TestClock|TestRandomKills
test-tuned: deps build $(ROOTS) ## The same suite and the product's main tests, with the tuned kernel
	@$(MAKE) --no-print-directory kernel ARCH=$(HOST)
	go run ./kernel/mkguest -arch $(HOST) -kernel tuned -build "$(BUILD)" -out dist/tuned
	SAMPAN_GUEST=$(CURDIR)/dist/tuned/guest-$(HOST) go test -count=1 -timeout 20m -run '^TestConformance$$' ./vm/qemu
	SAMPAN_GUEST=$(CURDIR)/dist/tuned/guest-$(HOST) SAMPAN_E2E_RUN='$(TUNED)' go test -count=1 -timeout 40m -v \
	  -run '$(if $(filter 0,$(shell id -u)),^TestAsOrdinaryUser$$,$(TUNED))' ./cmd/sampan/e2e

FUZZTIME ?= 10m
FUZZDIR  ?= .

fuzz: ## Run every fuzzer (below FUZZDIR) for FUZZTIME (10m): hours
	@grep -r '^func Fuzz' --include='*_test.go' $(FUZZDIR) | sed 's|/[^/]*:func \(Fuzz[A-Za-z]*\).*| \1|' | sort -u | while read -r dir fuzz; do \
	  echo "== $$dir $$fuzz"; \
	  go test -run '^$$' -fuzz "^$$fuzz\$$" -fuzztime $(FUZZTIME) -fuzzminimizetime 100x $$dir || exit 1; done

lint: ## gofmt, vet, import rules, and the macOS code type-checked
	@test -z "$$(gofmt -l . | tee /dev/stderr)"
	go vet ./...
	go test -count=1 -run 'TestImports|TestTypeCheck' ./proto ./vm/vz/...
	CGO_ENABLED=0 GOOS=darwin go build -o /dev/null ./cmd/sampan

proto: ## Generate proto/*.pb.go (needs protobuf-compiler)
	cd proto && PATH="$$(go env GOPATH)/bin:$$PATH" go generate

# What the benchmark and the sandbox's test compare with: crun of the guest's own
# Debian.
dist/root-crun:
	go run ./kernel/mkroot -out $@ crun base-files busybox-static

# Docker's init, for the same test.
dist/root-tini:
	go run ./kernel/mkroot -out $@ tini base-files

# Docker of the guest's own Debian, which TestRecordSandbox asks for its specs.
dist/root-dockerd:
	go run ./kernel/mkroot -out $@ docker.io docker-cli containerd runc iptables base-files coreutils dash tar ca-certificates

bench: build guest dist/root-crun dist/root-nginx ## Measure, and write docs/benchmarks.md
	go run ./cmd/sampan-bench -bin bin -out docs/benchmarks.md

install: build guest ## Install below PREFIX (default: /usr/local, or ~/.local when not root)
	rm -rf "$(PREFIX)/share/sampan/guest-$(ARCH)"
	install -d "$(PREFIX)/bin" "$(PREFIX)/share/sampan/guest-$(ARCH)"
	install bin/sampan bin/sampand "$(PREFIX)/bin"
	install -m 644 dist/guest-$(ARCH)/* "$(PREFIX)/share/sampan/guest-$(ARCH)"

clean: ## Remove what was built
	rm -rf bin dist
