#!/bin/sh
# Create the bucket and its two users, in the container `store-setup` of compose.yaml. Every start updates both.
# Only `mc` and shell builtins: the store's image has no grep and no sed. Secrets pass through files and pipes, so
# that no command line shows them.
set -eu
umask 077
export MC_CONFIG_DIR=/tmp/mc
read -r root < /run/secrets/store_user || [ -n "$root" ]
read -r password < /run/secrets/store_password || [ -n "$password" ]
printf '%s\n%s\n' "$root" "$password" | mc alias set store http://store:9000 > /dev/null
mc mb --ignore-existing store/qtune

# user NAME: create a user with the keys of /run/secrets/NAME_aws_credentials and the rights of NAME.json.
user() {
  id='' key=''
  while IFS=' =' read -r name value || [ -n "$name" ]; do
    case $name in
      aws_access_key_id) id=$value ;;
      aws_secret_access_key) key=$value ;;
    esac
  done < "/run/secrets/$1_aws_credentials"
  printf '%s\n%s\n' "$id" "$key" | mc admin user add store
  mc admin policy create store "qtune-$1" "/setup/$1.json"
  case $(mc admin policy entities store --user "$id") in
    *"qtune-$1"*) ;;
    *) mc admin policy attach store "qtune-$1" --user "$id" ;;
  esac
}
user api
user nodes
