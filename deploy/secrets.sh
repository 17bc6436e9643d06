#!/usr/bin/env bash
# Create the missing secrets of compose.yaml in deploy/secrets. Existing ones do not change. Only the owner can open the
# folder. Its files are readable, because containers read them as user 10001.
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
  echo "remove $folder/aws_credentials: it contains the store's root password, which is no longer needed" >&2
fi
[ ${#made[@]} -gt 0 ] || { echo "all secrets exist in $folder; remove a file to create a new one" >&2; exit 1; }
echo "created in $folder: ${made[*]}"
