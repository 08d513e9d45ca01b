"""The distance to the nearest class, by its formula, and images far from every class."""

import numpy as np

from dist_net.photos.unknown_images import SHRINKAGE, distance_of, tempered_by


def drawn(count=40, width=8):
    generator = np.random.default_rng(0)
    labels = np.arange(count) % 2
    means = np.array([[3.0], [-3.0]]) * np.ones(width)
    features = means[labels] + generator.normal(size=(count, width)) * np.arange(1, width + 1)
    return features.astype(np.float32), labels


def test_it_is_mahalanobis_of_the_shrunk_covariance_within_classes():
    features, labels = drawn()
    means = np.stack([features[labels == label].mean(0) for label in (0, 1)]).astype(np.float64)
    residuals = features - means[labels]
    covariance = residuals.T @ residuals / len(features)
    shrunk = (1 - SHRINKAGE) * covariance
    shrunk += SHRINKAGE * np.trace(covariance) / 8 * np.eye(8)
    apart = features[:, None] - means
    expected = np.einsum("nkf,fg,nkg->nk", apart, np.linalg.inv(shrunk), apart).min(1)
    np.testing.assert_allclose(distance_of(features, labels, 2)(features), expected, rtol=1e-3)


def test_far_images_become_less_certain_and_near_ones_stay_as_they_are():
    logits = np.array([[4.0, 0.0], [4.0, 0.0]], np.float32)
    tempered = tempered_by(np.array([0.5, 2.0], np.float32), logits)
    assert tempered.tolist() == [[4.0, 0.0], [1.0, 0.0]]


def test_distances_are_in_units_of_the_usual_one():
    features, labels = drawn()
    distance = distance_of(features, labels, 2)
    halved = distance.over(2.0)(features)
    np.testing.assert_allclose(halved, distance(features) / 2, rtol=1e-3)
