# dnstrail: what can be done here. `make help` lists it.
#
# Go is all that a machine must have. What a target needs beyond it, it installs (Debian packages, as root) or builds (Go modules), and says so.

SHELL       := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS   += --no-print-directory
# What is tested here is not the cluster that somebody's shell is about.
unexport KUBECONFIG

BIN     := $(CURDIR)/bin
CACHE   := $(CURDIR)/.cache
ROOT    := $(shell test "$$(id -u)" = 0 && echo yes)
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
STRIP   := -s -w

GOLANGCI_LINT_VERSION := v2.15.0
ACTIONLINT_VERSION := v1.7.12
HELM_VERSION := v4.3.1
AXE_VERSION := 4.10.3
SBOM_VERSION := v1.10.0
AXE     := $(CACHE)/axe-$(AXE_VERSION).min.js
CLANG ?= clang
# The generated objects are compared byte for byte, so the compiler's version is part of them.
CLANG_MAJOR := 14

say = @printf '==> %s\n' "$(1)"

##@ Use

.PHONY: demo
demo: build need-demo ## Raise a two-node lab, run real lookups, print each as one trace. JAEGER=1 starts a real Jaeger, JAEGER=host:port uses one. PAGE=1 keeps traffic and faults running and serves the store's page
	$(if $(filter 1,$(JAEGER)),@$(MAKE) $(BIN)/jaeger)
	@$(if $(ROOT),,echo "make demo raises network namespaces and loads eBPF: run it as root" >&2; exit 1;) \
	mkdir -p $(BIN) && go build -o $(BIN)/demo ./test/demo && exec $(BIN)/demo -bin $(BIN) $(if $(JAEGER),-jaeger $(JAEGER)) $(if $(PAGE),-page $(PAGE))

.PHONY: story
story: build ## Play the incident that the README tells: a firewall between two nodes lost its rule for UDP 53
	@test/need.sh dig=bind9-dnsutils ping=iputils-ping
	@go build -o $(BIN)/story ./test/story && exec $(BIN)/story -bin $(BIN)

.PHONY: build
build: $(BIN)/coredns $(BIN)/dnstrail ## Build bin/coredns (CoreDNS with the plugin) and bin/dnstrail

.PHONY: $(BIN)/coredns $(BIN)/dnstrail
$(BIN)/coredns: ## (the first build compiles all of CoreDNS: some minutes)
	@test -x $@ || echo "==> building CoreDNS with the dnstrail plugin (a cold build takes some minutes)"
	@CGO_ENABLED=0 test/progress.sh go build -tags grpcnotrace -trimpath -ldflags '$(STRIP) -X github.com/coredns/coredns/coremain.GitCommit=$(VERSION)' -o $@ ./build/coredns
$(BIN)/dnstrail:
	@test -x $@ || echo "==> building dnstrail"
	@CGO_ENABLED=0 test/progress.sh go build -trimpath -ldflags '$(STRIP) -X main.built=$(VERSION)' -o $@ ./tracer/cmd/dnstrail

.PHONY: images
REGISTRY ?= localhost
images: build need-images ## Container images of both programs (buildah): REGISTRY/coredns and REGISTRY/dnstrail, tag VERSION
	@test "$$(id -u)" = 0 || { echo "images are made as root: nobody else may give a file a capability" >&2; exit 1; }
	@context=$$(mktemp -d); trap 'rm -rf "$$context"' EXIT; \
	cp $(BIN)/coredns $(BIN)/dnstrail /etc/ssl/certs/ca-certificates.crt "$$context"; \
	setcap cap_net_bind_service=+ep "$$context/coredns"; \
	for image in coredns dnstrail; do \
		buildah build --quiet --isolation chroot --timestamp 0 --target $$image -f build/image/Containerfile -t $(REGISTRY)/$$image:$(VERSION) "$$context" >/dev/null; \
		echo "    built $(REGISTRY)/$$image:$(VERSION)"; \
	done

.PHONY: release
release: $(CACHE)/bin/helm-$(HELM_VERSION) $(CACHE)/bin/cyclonedx-gomod-$(SBOM_VERSION) ## Programs of all architectures, SBOMs, chart and checksums into dist/: VERSION=v1.2.3 (docs/release.md)
	@HELM=$< SBOM=$(word 2,$^) build/release.sh files $(VERSION) dist

.PHONY: sbom
sbom: build $(CACHE)/bin/cyclonedx-gomod-$(SBOM_VERSION) ## What is in both programs (CycloneDX), beside them: bin/coredns.cdx.json, bin/dnstrail.cdx.json
	@for name in coredns dnstrail; do $(CACHE)/bin/cyclonedx-gomod-$(SBOM_VERSION) bin -json -version $(VERSION) -output $(BIN)/$$name.cdx.json $(BIN)/$$name; echo "    wrote bin/$$name.cdx.json"; done

.PHONY: release-images
release-images: need-images ## Images of both programs for all architectures, made of dist/ and pushed: VERSION=v1.2.3 REGISTRY=registry.example/dnstrail
	@build/release.sh images $(VERSION) dist $(REGISTRY)

$(CACHE)/bin/cyclonedx-gomod-$(SBOM_VERSION):
	@echo "==> building cyclonedx-gomod $(SBOM_VERSION)"
	@mkdir -p $(@D) && GOBIN=$(CACHE)/bin $(CURDIR)/test/progress.sh go install github.com/CycloneDX/cyclonedx-gomod/cmd/cyclonedx-gomod@$(SBOM_VERSION) && mv $(CACHE)/bin/cyclonedx-gomod $@

##@ Check

.PHONY: test
test: ## Every test: unit, race, and, as root, the whole system on real packets against a real Jaeger and Prometheus
	@$(MAKE) test-unit
	@$(if $(ROOT),$(MAKE) test-system,$(MAKE) test-left-out)

UNIT   = $(shell go list ./... | grep -v /test/)
SYSTEM = $(shell go list ./test/...)

.PHONY: test-unit
test-unit: $(if $(ROOT),need-system) ## Unit tests under the race detector (some need root, or Prometheus; without it they say so)
	$(call say,unit tests with -race)
	@go test -race -timeout 30m $(UNIT)

.PHONY: test-system
test-system: build need-system $(BIN)/jaeger $(AXE) ## The lab, end to end, as root
	$(call say,system tests: real packets in network namespaces)
	@DNSTRAIL_BIN=$(BIN) DNSTRAIL_AXE=$(AXE) go test -p 1 -count=1 -timeout 40m $(SYSTEM)

# axe-core (MPL-2.0) looks at pages with the eyes of those who do not see them. It is fetched for tests, and is in no program.
$(AXE):
	@test/need.sh npm=npm
	@echo "==> fetching axe-core $(AXE_VERSION)"
	@mkdir -p $(CACHE) && cd $(CACHE) && npm pack --silent axe-core@$(AXE_VERSION) >/dev/null && tar -xzOf axe-core-$(AXE_VERSION).tgz package/axe.min.js >$@.part && mv $@.part $@ && rm axe-core-$(AXE_VERSION).tgz

.PHONY: screenshots
screenshots: build need-system $(AXE) ## The pictures of the page in docs/images, of make demo PAGE=1 in a real Chromium, as root
	@mkdir -p docs/images && rm -f docs/images/*.png
	@test/need.sh pngquant=pngquant
	@DNSTRAIL_BIN=$(BIN) DNSTRAIL_AXE=$(AXE) DNSTRAIL_SCREENSHOTS=$(CURDIR)/docs/images go test -count=1 -timeout 20m -run TestDemoPageInChromium ./test/page
	@pngquant --force --ext .png --speed 1 64 docs/images/*.png

KERNELS ?=
.PHONY: test-kernels
test-kernels: build need-kernels need-kernels-all ## Other kernels under QEMU, 5.10 to the newest: doctor, the demo, a core of the fault matrix; writes docs/kernels.md. KERNELS=6.1,6.12 boots only these, and writes nothing. Not part of make test
	@go build -o $(BIN)/kernels ./test/kernels && $(BIN)/kernels -bin $(BIN) -cache $(CACHE)/kernels $(if $(KERNELS),-only $(KERNELS),-write docs/kernels.md)

.PHONY: test-kernel
test-kernel: build need-kernels ## Linux 6.1 under QEMU: the program loads, one lookup over UDP, one over TCP, two drops (about a minute)
	@go build -o $(BIN)/kernels ./test/kernels && $(BIN)/kernels -bin $(BIN) -cache $(CACHE)/kernels -only 6.1 -short

.PHONY: test-left-out
test-left-out:
	@echo "==> left out, because it needs root: the lab, the end-to-end tests, the link rate, the fault matrix (make test-system)"

.PHONY: test-kube
test-kube: ## The Kubernetes source against a real API server and etcd, built first (some minutes). Not part of make test. DNSTRAIL_KUBE_PODS=100000 fills it
	@test -x $(BIN)/kube-apiserver || echo "==> building kube-apiserver and etcd from their Go modules (about six minutes, once)"
	@test/progress.sh test/kube/build.sh $(BIN) etcd kube-apiserver
	$(call say,the Kubernetes source against a real API server)
	@DNSTRAIL_KUBE=$(BIN) go test -count=1 -v -timeout 60m -run TestRealAPIServer ./identity ./build

KUBE_PROGRAMS := etcd kube-apiserver kube-controller-manager kube-scheduler kubelet kube-proxy containerd ctr containerd-shim-runc-v2
PROXY ?= iptables
.PHONY: cluster
cluster: build need-cluster ## Raise a Kubernetes of two nodes on this machine, as root (built first, some twenty minutes; then under a minute). PROXY=nftables
	@test/progress.sh test/kube/build.sh $(BIN) $(KUBE_PROGRAMS)
	@CGO_ENABLED=0 go build -tags grpcnotrace -trimpath -ldflags '$(STRIP)' -o $(BIN)/coredns-stock github.com/coredns/coredns
	@CGO_ENABLED=0 go build -trimpath -ldflags '$(STRIP)' -o $(BIN)/pod ./test/kubecluster/pod
	@CGO_ENABLED=0 go build -trimpath -o $(BIN)/kubecluster ./test/kubecluster
	$(call say,a Kubernetes of two nodes)
	@$(BIN)/kubecluster up -bin $(BIN) -dir $(CACHE)/cluster -proxy $(PROXY)

.PHONY: cluster-down
cluster-down: ## Take the cluster of make cluster down
	@test ! -x $(BIN)/kubecluster || $(BIN)/kubecluster down -bin $(BIN) -dir $(CACHE)/cluster

LOOKUPS ?= 10000
PROXIES ?= iptables nftables
PARTS ?=
.PHONY: test-cluster
test-cluster: build need-cluster $(CACHE)/bin/helm-$(HELM_VERSION) ## dnstrail in the cluster of make cluster, in each mode of kube-proxy (PROXIES): its own command, helm, LOOKUPS (10000), faults, rights, taken back exactly. Not part of make test. PARTS=lookups,faults runs these
	@for proxy in $(PROXIES); do \
		$(MAKE) cluster-down && $(MAKE) cluster PROXY=$$proxy && \
		printf '==> dnstrail in a cluster of two nodes, kube-proxy by %s\n' $$proxy && \
		$(BIN)/kubecluster test -bin $(BIN) -dir $(CACHE)/cluster -lookups $(LOOKUPS) -helm $(CACHE)/bin/helm-$(HELM_VERSION) \
			$(if $(PARTS),-parts $(PARTS)) || exit 1; \
	done
	@$(MAKE) cluster-down

.PHONY: test-clients
test-clients: build need-clients ## What people resolve names with (glibc, musl, Go, Node, Java, dnsmasq, named, ...): every row against a capture. make test runs a core of it
	$(call say,real clients)
	@go build -o $(BIN)/clients ./test/clients && exec $(BIN)/clients -bin $(BIN)

.PHONY: test-chart
test-chart: $(CACHE)/bin/helm-$(HELM_VERSION) ## The Helm chart, by helm itself, which is built first. Not part of make test
	$(call say,the chart)
	@HELM=$(CACHE)/bin/helm-$(HELM_VERSION) go test -count=1 -run TestChart ./build

$(CACHE)/bin/helm-$(HELM_VERSION):
	@echo "==> building helm $(HELM_VERSION) (about two minutes)"
	@mkdir -p $(@D) && GOBIN=$(CACHE)/bin $(CURDIR)/test/progress.sh go install helm.sh/helm/v4/cmd/helm@$(HELM_VERSION) && mv $(CACHE)/bin/helm $@

.PHONY: lint
lint: $(CACHE)/bin/golangci-lint-$(GOLANGCI_LINT_VERSION) $(CACHE)/bin/actionlint-$(ACTIONLINT_VERSION) ## gofmt, go vet, golangci-lint, actionlint
	$(call say,lint)
	@test -z "$$(gofmt -l $$(git ls-files '*.go'))" || { gofmt -l $$(git ls-files '*.go'); exit 1; }
	@go vet ./...
	@$< run ./...
	@$< run --config .golangci-security.yaml ./...
	@$(word 2,$^) -shellcheck= -pyflakes= .github/workflows/*.yml

$(CACHE)/bin/actionlint-$(ACTIONLINT_VERSION):
	@echo "==> building actionlint $(ACTIONLINT_VERSION)"
	@mkdir -p $(@D) && GOBIN=$(CACHE)/bin $(CURDIR)/test/progress.sh go install github.com/rhysd/actionlint/cmd/actionlint@$(ACTIONLINT_VERSION) && mv $(CACHE)/bin/actionlint $@

$(CACHE)/bin/golangci-lint-$(GOLANGCI_LINT_VERSION):
	@echo "==> building golangci-lint $(GOLANGCI_LINT_VERSION) (about two minutes)"
	@mkdir -p $(@D) && GOBIN=$(CACHE)/bin $(CURDIR)/test/progress.sh go install github.com/golangci/golangci-lint/v2/cmd/golangci-lint@$(GOLANGCI_LINT_VERSION) && mv $(CACHE)/bin/golangci-lint $@

.PHONY: generate
generate: need-clang ## Generate what is generated: the eBPF objects, docs/attributes.md, the man pages, the link's test vectors
	$(call say,generate)
	@go generate ./...
	@go test -count=1 ./link ./link/semconv -update >/dev/null
	@go test -count=1 -run TestManPages ./tracer/cmd/dnstrail -update >/dev/null

.PHONY: check-generated
check-generated: generate ## Fail if a committed generated file differs from what its source gives
	@git diff --exit-code --stat -- . || { echo "generated files do not match their source: run make generate and commit" >&2; exit 1; }
	@test -z "$$(git status --porcelain --untracked-files=all -- tracer/bpf docs link)" || { git status --short -- tracer/bpf docs link; exit 1; }

N ?= 1000
.PHONY: test-hindsight
test-hindsight: build need-system $(BIN)/jaeger ## N (1000) bad lookups of six kinds among 100 N good ones, one in a hundred kept: Jaeger gets of the bad ones what it gets where all are kept, as root. make test has a core of it
	@DNSTRAIL_BIN=$(BIN) DNSTRAIL_HINDSIGHT=$(N) go test -count=1 -v -timeout 30m ./test/hindsight

SOAK ?= 1000000
.PHONY: soak
soak: build need-system ## No false alarm in SOAK (1000000) answered lookups under load, as root
	@DNSTRAIL_BIN=$(BIN) DNSTRAIL_SOAK=$(SOAK) go test -count=1 -v -timeout 60m -run TestNoFalseAlarm ./test/e2e

.PHONY: test-attack
test-attack: build ## Floods from a pod against an agent with 256 MiB, as root (about five minutes; make test has a core of it)
	@DNSTRAIL_BIN=$(BIN) DNSTRAIL_ATTACK=long go test -count=1 -v -timeout 30m ./test/attack

SOAKTIME ?= 10m
.PHONY: soak-attack
soak-attack: build ## All attacks on agent and store at once for SOAKTIME (10m), while a victim looks up names, as root. Not part of make test
	@DNSTRAIL_BIN=$(BIN) DNSTRAIL_ATTACK_SOAK=$(SOAKTIME) go test -count=1 -v -timeout 60m -run TestSoakUnderAttack ./test/attack

FUZZTIME ?= 20s
.PHONY: fuzz
fuzz: ## Run every fuzz target for FUZZTIME (20s)
	@test/fuzz.sh $(FUZZTIME)

.PHONY: test-faults
test-faults: build need-faults ## The whole fault matrix, in every setting, as root (about forty minutes; make test has the core of it)
	@go build -o $(BIN)/faults ./test/faults && exec $(BIN)/faults -bin $(BIN) -agents all -labs 3

.PHONY: bench
bench: build need-bench ## Ratios measured side by side in one run: throughput, iperf3, eBPF nanoseconds, memory
	@go build -o $(BIN)/bench ./test/bench && $(BIN)/bench -bin $(BIN)

##@ Keep

.PHONY: clean
clean: ## Remove what was built
	@rm -rf $(BIN) $(CACHE) dist

.PHONY: help
help: ## This list
	@awk 'BEGIN {FS = ":.*## "} /^##@/ {printf "\n%s\n", substr($$0, 5)} /^[a-z-]+:.*## / {printf "  make %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: jaeger $(BIN)/jaeger
jaeger: $(BIN)/jaeger ## Build bin/jaeger, a real Jaeger for the tests and the demo
$(BIN)/jaeger:
	@test -x $@ || echo "==> building Jaeger from its Go module (about five minutes, once)"
	@test/progress.sh test/jaeger/build.sh $@

.PHONY: need-cluster need-demo need-system need-clients need-faults need-bench need-images need-clang need-kernels need-kernels-all
need-demo:
	@test/need.sh dig=bind9-dnsutils $(if $(PAGE),dnsperf=dnsperf)
need-system:
	@test/need.sh dig=bind9-dnsutils dnsperf=dnsperf prometheus=prometheus ip=iproute2 setpriv=util-linux chromium=chromium
	@test/need.sh gcc=gcc musl-gcc=musl-tools kdig=knot-dnsutils python3=python3 runc=runc
need-clients: need-system
	@test/need.sh node=nodejs javac=openjdk-17-jdk-headless busybox=busybox drill=ldnsutils unbound=unbound dnsmasq=dnsmasq-base
	@test/extract.sh $(BIN)/extracted bind9 systemd-resolved
need-cluster:
	@test/need.sh ip=iproute2 sysctl=procps runc=runc iptables=iptables nft=nftables conntrack=conntrack
	@test -x /usr/lib/cni/bridge || test/need.sh cni-bridge=containernetworking-plugins
need-kernels:
	@test/need.sh qemu-system-x86_64=qemu-system-x86 busybox=busybox-static xz=xz-utils zstd=zstd dig=bind9-dnsutils
	@test -e /usr/share/seabios/bios-256k.bin || test/need.sh bios=seabios
	@test -e /usr/share/keyrings/debian-archive-keyring.gpg || test/need.sh keyring=debian-archive-keyring
need-kernels-all:
	@test/need.sh qemu-system-aarch64=qemu-system-arm
need-faults: need-system
	@test/need.sh nft=nftables unbound=unbound dnsmasq=dnsmasq-base
need-bench:
	@test/need.sh dnsperf=dnsperf iperf3=iperf3 taskset=util-linux
need-images:
	@test/need.sh buildah=buildah setcap=libcap2-bin
need-clang:
	@test/need.sh clang=clang llvm-strip=llvm
	@test -e /usr/include/bpf/bpf_helpers.h || test/need.sh bpf_helpers.h=libbpf-dev
	@v=$$($(CLANG) -dumpversion | cut -d. -f1); test "$$v" = $(CLANG_MAJOR) || { echo "clang $(CLANG_MAJOR) is needed to reproduce the committed objects; $(CLANG) is $$v" >&2; exit 1; }
