# dnstrail: what can be done here. `make help` lists it.
#
# Go is all that a machine must have. What a target needs beyond it, it installs (Debian packages, as root) or builds (Go modules), and says so.

SHELL       := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS   += --no-print-directory

BIN     := $(CURDIR)/bin
CACHE   := $(CURDIR)/.cache
ROOT    := $(shell test "$$(id -u)" = 0 && echo yes)
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
STRIP   := -s -w

GOLANGCI_LINT_VERSION := v2.15.0
CLANG ?= clang
# The generated objects are compared byte for byte, so the compiler's version is part of them.
CLANG_MAJOR := 14

say = @printf '==> %s\n' "$(1)"

##@ Use

.PHONY: demo
demo: build need-demo ## Raise a two-node lab, run real lookups, print each as one trace. JAEGER=1 starts a real Jaeger, JAEGER=host:port uses one
	$(if $(filter 1,$(JAEGER)),@$(MAKE) $(BIN)/jaeger)
	@$(if $(ROOT),,echo "make demo raises network namespaces and loads eBPF: run it as root" >&2; exit 1;) \
	mkdir -p $(BIN) && go build -o $(BIN)/demo ./test/demo && exec $(BIN)/demo -bin $(BIN) $(if $(JAEGER),-jaeger $(JAEGER))

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
	@context=$$(mktemp -d); trap 'rm -rf "$$context"' EXIT; \
	cp $(BIN)/coredns $(BIN)/dnstrail /etc/ssl/certs/ca-certificates.crt "$$context"; \
	for image in coredns dnstrail; do \
		buildah build --quiet --isolation chroot --timestamp 0 --target $$image -f build/image/Containerfile -t $(REGISTRY)/$$image:$(VERSION) "$$context" >/dev/null; \
		echo "    built $(REGISTRY)/$$image:$(VERSION)"; \
	done

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
test-system: build need-system $(BIN)/jaeger ## The lab, end to end, as root
	$(call say,system tests: real packets in network namespaces)
	@DNSTRAIL_BIN=$(BIN) go test -p 1 -count=1 -timeout 40m $(SYSTEM)

.PHONY: test-left-out
test-left-out:
	@echo "==> left out, because it needs root: the lab, the end-to-end tests, the link rate, the fault matrix (make test-system)"

.PHONY: test-kube
test-kube: ## The Kubernetes source against a real API server and etcd, built first (some minutes). Not part of make test. DNSTRAIL_KUBE_PODS=100000 fills it
	@test -x $(BIN)/kube-apiserver || echo "==> building kube-apiserver and etcd from their Go modules (about six minutes, once)"
	@test/progress.sh test/kube/build.sh $(BIN)
	$(call say,the Kubernetes source against a real API server)
	@DNSTRAIL_KUBE=$(BIN) go test -count=1 -v -timeout 60m -run TestRealAPIServer ./plugin/identity ./build

HELM_VERSION := v4.3.1
.PHONY: test-chart
test-chart: $(CACHE)/bin/helm-$(HELM_VERSION) ## The Helm chart, by helm itself, which is built first. Not part of make test
	$(call say,the chart)
	@HELM=$(CACHE)/bin/helm-$(HELM_VERSION) go test -count=1 -run TestChart ./build

$(CACHE)/bin/helm-$(HELM_VERSION):
	@echo "==> building helm $(HELM_VERSION) (about two minutes)"
	@mkdir -p $(@D) && GOBIN=$(CACHE)/bin $(CURDIR)/test/progress.sh go install helm.sh/helm/v4/cmd/helm@$(HELM_VERSION) && mv $(CACHE)/bin/helm $@

.PHONY: lint
lint: $(CACHE)/bin/golangci-lint-$(GOLANGCI_LINT_VERSION) ## gofmt, go vet, golangci-lint
	$(call say,lint)
	@test -z "$$(gofmt -l $$(git ls-files '*.go'))" || { gofmt -l $$(git ls-files '*.go'); exit 1; }
	@go vet ./...
	@$< run ./...

$(CACHE)/bin/golangci-lint-$(GOLANGCI_LINT_VERSION):
	@echo "==> building golangci-lint $(GOLANGCI_LINT_VERSION) (about two minutes)"
	@mkdir -p $(@D) && GOBIN=$(CACHE)/bin $(CURDIR)/test/progress.sh go install github.com/golangci/golangci-lint/v2/cmd/golangci-lint@$(GOLANGCI_LINT_VERSION) && mv $(CACHE)/bin/golangci-lint $@

.PHONY: generate
generate: need-clang ## Generate what is generated: the eBPF objects, docs/attributes.md, the link's test vectors
	$(call say,generate)
	@go generate ./...
	@go test -count=1 ./link ./link/semconv -update >/dev/null

.PHONY: check-generated
check-generated: generate ## Fail if a committed generated file differs from what its source gives
	@git diff --exit-code --stat -- . || { echo "generated files do not match their source: run make generate and commit" >&2; exit 1; }
	@test -z "$$(git status --porcelain --untracked-files=all -- tracer/bpf docs link)" || { git status --short -- tracer/bpf docs link; exit 1; }

SOAK ?= 1000000
.PHONY: soak
soak: build need-system ## No false alarm in SOAK (1000000) answered lookups under load, as root
	@DNSTRAIL_BIN=$(BIN) DNSTRAIL_SOAK=$(SOAK) go test -count=1 -v -timeout 60m -run TestNoFalseAlarm ./test/e2e

FUZZTIME ?= 20s
.PHONY: fuzz
fuzz: ## Run every fuzz target for FUZZTIME (20s)
	@test/fuzz.sh $(FUZZTIME)

.PHONY: bench
bench: build need-bench ## Ratios measured side by side in one run: throughput, iperf3, eBPF nanoseconds, memory
	@go build -o $(BIN)/bench ./test/bench && $(BIN)/bench -bin $(BIN)

##@ Keep

.PHONY: clean
clean: ## Remove what was built
	@rm -rf $(BIN) $(CACHE)

.PHONY: help
help: ## This list
	@awk 'BEGIN {FS = ":.*## "} /^##@/ {printf "\n%s\n", substr($$0, 5)} /^[a-z-]+:.*## / {printf "  make %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: jaeger $(BIN)/jaeger
jaeger: $(BIN)/jaeger ## Build bin/jaeger, a real Jaeger for the tests and the demo
$(BIN)/jaeger:
	@test -x $@ || echo "==> building Jaeger from its Go module (about five minutes, once)"
	@test/progress.sh test/jaeger/build.sh $@

.PHONY: need-demo need-system need-bench need-images need-clang
need-demo:
	@test/need.sh dig=bind9-dnsutils
need-system:
	@test/need.sh dig=bind9-dnsutils dnsperf=dnsperf prometheus=prometheus ip=iproute2 setpriv=util-linux chromium=chromium
need-bench:
	@test/need.sh dnsperf=dnsperf iperf3=iperf3 taskset=util-linux
need-images:
	@test/need.sh buildah=buildah
need-clang:
	@test/need.sh clang=clang llvm-strip=llvm
	@v=$$($(CLANG) -dumpversion | cut -d. -f1); test "$$v" = $(CLANG_MAJOR) || { echo "clang $(CLANG_MAJOR) is needed to reproduce the committed objects; $(CLANG) is $$v" >&2; exit 1; }
