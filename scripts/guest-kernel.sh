#!/bin/bash
# Brings one of Debian's kernels, as packaged, and prints the path of its vmlinuz.  Needs no root.
#
#   scripts/guest-kernel.sh [cloud|generic|backports|backports-cloud]
#
# The kernel's modules are in ${vmlinuz%/boot/*}/lib/modules.
set -euo pipefail
here=$(dirname "$(readlink -f "$0")")
# shellcheck source=tests/guest/packages.sh
. "$here/../tests/guest/packages.sh"
kernel_image "${1:-cloud}"
