"""HoVer-Net's post-processing, written plainly from its description, one nucleus at a time on the full picture.

Source: Graham et al., Medical Image Analysis 58 (2019), and the steps of models/hovernet/post_proc.py in
github.com/vqdang/hover_net. Slow on purpose: tests and benchmarks hold the plugin's own against it.
"""

from __future__ import annotations

import cv2
import numpy as np
from scipy import ndimage
from skimage.segmentation import watershed


def instances(maps):
    """Return int32 (H, W), ids with gaps, of float (H, W, 3): probability of nucleus, horizontal and vertical distance."""
    blob = components(maps[..., 0] >= 0.5) > 0
    horizontal, vertical = (unit_range(maps[..., channel]) for channel in (1, 2))
    across = 1 - unit_range(cv2.Sobel(horizontal, cv2.CV_64F, 1, 0, ksize=21))
    down = 1 - unit_range(cv2.Sobel(vertical, cv2.CV_64F, 0, 1, ksize=21))
    edges = np.maximum(np.maximum(across, down) - (1 - blob.astype(np.int32)), 0)
    depth = -cv2.GaussianBlur((1 - edges) * blob, (3, 3), 0)
    inner = ndimage.binary_fill_holes(blob & (edges < 0.4)).astype(np.uint8)
    ellipse = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (5, 5))
    markers = components(cv2.morphologyEx(inner, cv2.MORPH_OPEN, ellipse))
    return watershed(depth, markers=markers, mask=blob).astype(np.int32)


def components(mask):
    """Label what hangs together over sides; what has less than 10 px is left out."""
    labels, _ = ndimage.label(mask)
    sizes = np.bincount(labels.ravel())
    return np.where(sizes[labels] < 10, 0, labels)


def unit_range(values):
    """Stretch from 0 to 1 as float32."""
    return cv2.normalize(values, None, alpha=0, beta=1, norm_type=cv2.NORM_MINMAX, dtype=cv2.CV_32F)


def table(labels, types=None):
    """Return a dict by id: box ((top, left), (bottom, right)), centroid (x, y), contour (n, 2), type and its share."""
    found = {}
    for label in np.unique(labels)[1:]:
        mask = labels == label
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        top, bottom, left, right = rows[0], rows[-1] + 1, columns[0], columns[-1] + 1
        crop = mask[top:bottom, left:right].astype(np.uint8)
        contours, _ = cv2.findContours(crop, cv2.RETR_TREE, cv2.CHAIN_APPROX_SIMPLE)
        contour = contours[0].reshape(-1, 2)
        if len(contour) < 3:
            continue
        moments = cv2.moments(crop)
        x, y = moments["m10"] / moments["m00"] + left, moments["m01"] / moments["m00"] + top
        one = {"box": ((top, left), (bottom, right)), "centroid": (x, y), "contour": np.add(contour, (left, top))}
        if types is not None:
            one["type"], one["share"] = majority(types[mask])
        found[int(label)] = one
    return found


def majority(values):
    """Return the most frequent value and its share; the second most frequent where the first is 0, background."""
    seen, counts = np.unique(values, return_counts=True)
    order = sorted(zip(seen.tolist(), counts.tolist(), strict=True), key=lambda pair: -pair[1])
    chosen = order[1] if order[0][0] == 0 and len(order) > 1 else order[0]
    return int(chosen[0]), chosen[1] / (len(values) + 1e-6)


def distances(labels):
    """Return float32 (H, W, 2): each pixel's horizontal and vertical distance to the centre of its nucleus, -1..1."""
    out = np.zeros((*labels.shape, 2), np.float32)
    for label, box in enumerate(ndimage.find_objects(labels), start=1):
        mask = labels[box] == label
        y, x = np.nonzero(mask)
        for channel, offset in enumerate((x + 1 - int(x.mean() + 0.5), y + 1 - int(y.mean() + 0.5))):
            scaled = offset.astype(np.float32)
            scaled[offset < 0] /= max(1, -offset.min())
            scaled[offset > 0] /= max(1, offset.max())
            out[box][mask, channel] = scaled
    return out
