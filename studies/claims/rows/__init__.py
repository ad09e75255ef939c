"""The rows of the ledger, one file per paper; `studies.claims.rows.every` lists them all."""
