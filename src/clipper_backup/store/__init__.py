"""Objects at keys: opening by URL, retries, conditional create, metering, wrappers that are stores themselves."""
