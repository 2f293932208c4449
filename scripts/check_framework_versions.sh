#!/usr/bin/env bash
# Test the adapters against the lowest and the highest framework versions they support.
#
#   scripts/check_framework_versions.sh [NAME...]      all rows below, or those whose name begins with a NAME
#
# PYTHON is an interpreter that has focus_rag's own requirements (default: .venv/bin/python). Each row gets a virtual
# environment of its own that holds the frameworks and borrows everything else, torch above all, from that interpreter.
set -euo pipefail
cd "$(dirname "$0")/.."

PYTHON=${PYTHON:-.venv/bin/python}
WORK=${WORK:-$(mktemp -d)}

# name | what to install | which tests
rows() {
  cat <<'ROWS'
langchain-lowest|langchain-core==1.0.0 langchain-tests==1.0.0 aiohttp<3.13 langgraph==1.0.0 langgraph-prebuilt==1.0.0 langchain-classic==1.0.0|tests/integrations/test_langchain_*.py
langchain-highest|langchain-core<2 langchain-tests<2 langgraph<2 langchain-classic<2|tests/integrations/test_langchain_*.py
llama-index-lowest|llama-index-core==0.14.0|tests/integrations/test_llama_index_*.py
llama-index-highest|llama-index-core<0.15|tests/integrations/test_llama_index_*.py
ROWS
}

wanted() {
  [ "$#" -eq 1 ] && return 0
  local name=$1 prefix
  shift
  for prefix in "$@"; do case $name in "$prefix"*) return 0 ;; esac; done
  return 1
}

borrowed=$("$PYTHON" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
status=0
while IFS='|' read -r name packages tests; do
  wanted "$name" "$@" || continue
  environment=$WORK/$name
  "$PYTHON" -m venv "$environment"
  own=$("$environment/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
  echo "$borrowed" >"$own/borrowed.pth"
  # shellcheck disable=SC2086
  "$environment/bin/python" -m pip install --quiet --disable-pip-version-check --upgrade $packages
  echo "== $name: $("$environment/bin/python" -m pip list --format=freeze --disable-pip-version-check 2>/dev/null |
    grep -E '^(langchain|langgraph|llama-index)[a-z-]*==' | sort -u | tr '\n' ' ')"
  # shellcheck disable=SC2086
  HF_HUB_OFFLINE=1 "$environment/bin/python" -m pytest -q -p no:cacheprovider $tests || status=1
done < <(rows)
exit $status
