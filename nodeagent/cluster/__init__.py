"""Access to the API server, in short-lived processes; the resident agent never imports it."""
