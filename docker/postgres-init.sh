#!/bin/sh
# Once, on an empty database folder: one account and one database per service, nothing shared.
# The official image's entrypoint runs (or sources) this as the server's owner.
set -eu

secrets=${COMPASS_SECRETS_FOLDER:-/run/secrets}

make() { # account, its database, the file with its password
    psql --no-psqlrc --quiet --set ON_ERROR_STOP=1 --username postgres --dbname postgres <<SQL
\\set password \`cat '$3'\`
SELECT 'CREATE ROLE $1' WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = '$1') \\gexec
ALTER ROLE $1 LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE PASSWORD :'password';
CREATE DATABASE $2 OWNER $1;
REVOKE ALL ON DATABASE $2 FROM PUBLIC;
SQL
}

make prefect prefect "$secrets/prefect_db_password"
make mlflow mlflow "$secrets/mlflow_db_password"
make mlflow mlflow_auth "$secrets/mlflow_db_password"
psql --no-psqlrc --quiet --set ON_ERROR_STOP=1 --username postgres --dbname postgres \
    --command 'REVOKE ALL ON DATABASE postgres, template1 FROM PUBLIC'
