"""Prints what exports cost as a Markdown table: one row for each FILE.json of 'momentum-gs export'.

  python scripts/export_table.py OUT/export/*.json
"""

import argparse
import json
from pathlib import Path


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", metavar="FILE.json", type=Path, nargs="+")
    records = [json.loads(file.read_text(encoding="utf-8")) for file in parser.parse_args().files]
    names = list(dict.fromkeys(name for record in records for name in record["model"]))
    head = ["file", "degree", "refined", *(f"{name} model" for name in names), *(f"{name} file" for name in names)]
    print("| " + " | ".join([*head, "Gaussians", "MiB", "s", "GiB"]) + " |")
    print("|" + " --- |" * (len(head) + 4))
    for record in records:
        options = record["options"]
        cells = [record["file"], str(options["sh_degree"]), str(options["refine"])]
        cells += [f"{record[side][name]:.3f}" for side in ("model", "export") for name in names]
        cells += [f"{record['gaussians']:,}", f"{record['bytes'] / 2**20:.1f}", f"{record['seconds']['export']:.0f}"]
        cells += [f"{record['peak_memory_bytes'] / 2**30:.2f}"]
        print("| " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
