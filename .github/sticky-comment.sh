#!/usr/bin/env bash
# Writes the given files as one comment of the pull request, over the one written before.
# Needs GH_TOKEN, GITHUB_REPOSITORY and PULL_REQUEST, its number.
set -euo pipefail
mark='<!-- vllm-fleet preview -->'
comments="repos/$GITHUB_REPOSITORY/issues/$PULL_REQUEST/comments"

body=$(mktemp)
trap 'rm -f "$body"' EXIT
# GitHub refuses more than 65,536 characters.
{ echo "$mark" && cat "$@"; } | head -c 65000 >"$body"

ours=$(gh api "$comments" --paginate --jq ".[] | select(.body | startswith(\"$mark\")) | .id" | sed -n 1p)
if [[ -n $ours ]]; then
    gh api --silent --method PATCH "repos/$GITHUB_REPOSITORY/issues/comments/$ours" --field "body=@$body"
else
    gh api --silent --method POST "$comments" --field "body=@$body"
fi
