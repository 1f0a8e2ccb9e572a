"""Problems, prompts and the ledger of what was trained."""
