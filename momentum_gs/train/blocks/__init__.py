"""The blocks of a run: what each holds, which are active, and where inactive ones are kept."""
