"""Floor 2: YAML to typed, frozen, validated dataclasses."""
