"""Pairs of images with similar content, for images without GPS whose names say nothing about their neighbours.

COLMAP's image retrieval by visual words (Schoenberger et al., "A Vote-and-Verify Strategy for Fast Spatial Verification
in Image Retrieval", 2016), with a vocabulary made of the scene's own features: nothing has to be downloaded.
"""

import numpy as np

from momentum_gs.core.log import info, progress
from momentum_gs.data.prepare.features import Workshop
from momentum_gs.data.prepare.files import workers

SIMILAR = 30
"""Images retrieved for each image. On 172 images of two crossing flights this finds 93 % of the pairs that match among
the neighbours by GPS, with 20 images 79 %."""
PER_IMAGE, SAMPLE = 500, 100_000
"""Descriptors of an image, and of all images, of which the vocabulary is made."""
PER_WORD = 40
"""Descriptors for each visual word. The number of words hardly matters, but more take longer: on the scene above
512 words find 91 % of the pairs, 2,150 and 6,250 find 93 %."""
ITERATIONS = 5
"""Of k-means. 20, or three restarts, find no more pairs (92 to 94 %) and take two and five times as long."""
QUERIED = 1000
"""Features of an image, the largest, that are looked up; 2000 find no more pairs."""


def similar_pairs(shop: Workshop) -> set[tuple[str, str]]:
    """Pairs of each image with the ``SIMILAR`` images most similar to it; the features must be in the database."""
    colmap = shop.pycolmap
    with shop.open_database() as database:
        names = {image.image_id: image.name for image in database.read_all_images()}
        draw, each = np.random.default_rng(0), min(PER_IMAGE, -(-SAMPLE // len(names)))
        sampled = [np.empty((0, 128), np.uint8)]
        for identity in sorted(names):
            descriptors = database.read_descriptors(identity).data
            sampled.append(descriptors[draw.permutation(len(descriptors))[:each]])
        sample = np.concatenate(sampled).astype(np.float32)
        if len(sample) < PER_WORD:  # No image has features; mapping says so.
            return set()
        build = colmap.VisualIndex.BuildOptions()
        build.num_visual_words = len(sample) // PER_WORD
        build.num_iterations, build.num_rounds, build.num_threads = ITERATIONS, 1, workers()
        colmap.set_random_seed(0)  # Nearly the same pairs if matching is resumed; threads round differently.
        info(f"retrieval: a vocabulary of {build.num_visual_words} words (a warning about few points is harmless)")
        index = colmap.VisualIndex.create(sample.shape[1], sample.shape[1] // 2)
        index.build(build, colmap.FeatureDescriptorsFloat(data=sample, type=colmap.FeatureExtractorType.SIFT))
        path = shop.work / "vocabulary.bin"
        index.write(path)
        options = colmap.VocabTreePairingOptions()
        options.vocab_tree_path, options.num_images = path, SIMILAR + 1  # An image retrieves itself, too.
        options.max_num_features, options.num_threads = QUERIED, workers()
        generator, pairs = colmap.VocabTreePairGenerator(options, database), set()
        with progress(len(names), "retrieval") as bar:
            while not generator.has_finished():
                pairs |= {tuple(sorted((names[a], names[b]))) for a, b in generator.next() if a != b}
                bar.update()
    return pairs
