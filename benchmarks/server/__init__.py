"""django_localsync as a target of the benchmark: a bare project, configured by the harness through the environment."""
