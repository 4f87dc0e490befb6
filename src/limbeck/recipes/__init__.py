"""The packaged methods, one YAML file each."""
