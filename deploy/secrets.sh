#!/usr/bin/env bash
# Make the secrets of compose.yaml in deploy/secrets, once: those that are there stay, and only missing ones are made. The
# folder is its owner's alone, its files are readable, since containers read them as user 10001.
set -euo pipefail
folder="$(dirname "$0")/secrets"
mkdir -p -m 700 "$folder"
made=()
secret() { python3 -c 'import secrets; print(secrets.token_hex(32), end="")'; }
put() { # NAME TEXT
  [ ! -e "$folder/$1" ] || return 0
  printf '%s' "$2" > "$folder/$1"
  chmod 644 "$folder/$1"
  made+=("$1")
}
credentials() { printf '[default]\naws_access_key_id = %s\naws_secret_access_key = %s\n' "$1" "$(secret)"; }
put database_password "$(secret)"
put qtune_database_url "postgresql://qtune:$(cat "$folder/database_password")@database/qtune"
put ray_token "$(secret)"
put store_user root-of-store
put store_password "$(secret)"
newline=$'\n'
put api_aws_credentials "$(credentials qtune-api)$newline"
put nodes_aws_credentials "$(credentials qtune-nodes)$newline"
if [ -e "$folder/aws_credentials" ]; then
  echo "remove $folder/aws_credentials: it holds the store's root password, which nothing needs any more" >&2
fi
[ ${#made[@]} -gt 0 ] || { echo "all of $folder is there already; remove a file to make a new one" >&2; exit 1; }
echo "made in $folder: ${made[*]}"
