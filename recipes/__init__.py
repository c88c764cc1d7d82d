"""Complete, commented recipes, one YAML file each."""
