# A thin face on Meson.  Every target installs what it needs (Debian packages, by sudo when not root).
#
#   make                      build/guise, a release build
#   make run                  a root shell in a virtual machine with Debian's kernel
#   make run CMD='uname -a'   one command in it; make fails as it does (make itself knows no status but 2 for that:
#                             scripts/run-guest.sh CMD returns the command's own)
#   make torture | stress | kernel-build      long runs with several vCPUs: tests/slow
#   make migrations           a machine that moves 100 times, and everybody killed at each step
#   make kvm-save             machines on the KVM engine that are saved and move, nested in QEMU
#   make test | bench | bench-quick | fuzz | lint | format | install [PREFIX=/usr/local] [DESTDIR=]
#   make BUILD=debug|asan|cov any of these with another kind of build, in build-debug and so on
#   make clean                removes the builds (downloads stay in ~/.cache/guise)

BUILD ?= release
PREFIX ?= /usr/local
CMD ?=
ENGINE ?= auto
RUN_OPTIONS ?=

directory_release = build
directory = $(or $(directory_$(BUILD)),build-$(BUILD))
guise = $(directory)/guise

options_release = --buildtype=release -Db_ndebug=false -Doptimization=2 -Ddebug=true
options_debug = --buildtype=debug
options_asan = --buildtype=debugoptimized -Db_sanitize=address,undefined -Db_lundef=false
options_cov = --buildtype=debug -Db_coverage=true
ifeq ($(options_$(BUILD)),)
$(error there is no BUILD=$(BUILD); choose release, debug, asan or cov)
endif

.PHONY: all setup run test torture stress kernel-build migrations kvm-save bench bench-quick charts fuzz lint format install coverage clean
.DEFAULT_GOAL = all
SHELL = /bin/bash
.SHELLFLAGS = -o pipefail -c

all: $(directory)/build.ninja
	@ninja -C $(directory) $(if $(VERBOSE),-v,--quiet) | { grep -v '^ninja: no work to do' || true; } >&2

$(directory)/build.ninja: | setup
	@meson setup $(directory) --prefix=$(PREFIX) $(options_$(BUILD)) >$(directory).log || { cat $(directory).log; exit 1; }
	@mv $(directory).log $(directory)/setup.log

setup:
	@scripts/setup.sh build image $(if $(filter cov,$(BUILD)),cov)

run: all
	@scripts/setup.sh guest
	@GUISE=$(guise) scripts/run-guest.sh $(if $(CMD),'$(subst ','\'',$(CMD))') -- --engine $(ENGINE) $(RUN_OPTIONS)

test: all
	@scripts/setup.sh test guest
	@tests/run.sh $(directory)

# Not part of `make test`: each takes from some minutes to half an hour.
torture stress kernel-build migrations kvm-save: all
	@scripts/setup.sh test guest $(if $(filter stress migrations kvm-save,$@),,kernel)
	@GUISE=$(guise) tests/slow/$@.sh

bench bench-quick: all
	@scripts/setup.sh guest image bench
	@GUISE=$(guise) bench/all.sh $(if $(filter bench-quick,$@),--quick)

# Draws what the last `make bench` measured, for README.md.
charts:
	@scripts/setup.sh bench
	@python3 bench/report.py charts docs

fuzz: all
	@scripts/setup.sh test
	@tests/fuzz.sh $(directory)

lint: all
	@scripts/setup.sh lint
	@scripts/lint.sh $(directory)

# Rewrites every source in the house style.
format:
	@scripts/setup.sh lint
	@find src tests bench fuzz -name out -prune -o -name '*.[ch]' -print0 | xargs -0 clang-format -i

# Installed files are built for where they go: another PREFIX reconfigures.
install: all
	@meson configure $(directory) --prefix=$(PREFIX)
	@DESTDIR=$(DESTDIR) meson install -C $(directory) --quiet >$(directory)/install.log || { cat $(directory)/install.log; exit 1; }

coverage:
	@$(MAKE) --no-print-directory BUILD=cov test
	@gcovr --root . --object-directory build-cov --filter src/ --print-summary

clean:
	rm -rf build build-debug build-asan build-cov build-fuzz
