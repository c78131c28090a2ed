"""System checks: what a developer misconfigured shows at start, with an id and the way out."""
