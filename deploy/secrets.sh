#!/usr/bin/env bash
# Make the secrets of compose.yaml in deploy/secrets, once: those that are there stay. The folder is its owner's alone,
# its files are readable, since containers read them as user 10001.
set -euo pipefail
folder="$(dirname "$0")/secrets"
[ ! -e "$folder" ] || { echo "$folder is there already; remove it to make new secrets" >&2; exit 1; }
mkdir -m 700 "$folder"
secret() { python3 -c 'import secrets; print(secrets.token_hex(32), end="")'; }
password=$(secret) key=$(secret)
put() { printf '%s' "$2" > "$folder/$1"; chmod 644 "$folder/$1"; }
put database_password "$password"
put qtune_database_url "postgresql://qtune:$password@database/qtune"
put ray_token "$(secret)"
put store_user qtune
put store_password "$key"
put aws_credentials "[default]
aws_access_key_id = qtune
aws_secret_access_key = $key
"
echo "made $folder"
