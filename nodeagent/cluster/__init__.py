"""What talks to the API server: short processes only, never imported by the resident agent."""
