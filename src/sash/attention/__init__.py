"""Who sees whom, and how it is computed: the pattern, segments and their merge, the backends and their oracle."""
