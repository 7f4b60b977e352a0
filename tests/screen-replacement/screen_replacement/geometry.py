"""Lines, corners and homographies.

Coordinates are continuous: the pixel in column x and row y covers [x, x+1) by [y, y+1),
so its centre is at (x + 0.5, y + 0.5).
"""

import numpy as np


def homography(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """The 3x3 matrix that maps four source points onto four target points."""
    rows, right = [], []
    for (x, y), (u, v) in zip(source, target):
        rows += [[x, y, 1, 0, 0, 0, -u * x, -u * y], [0, 0, 0, x, y, 1, -v * x, -v * y]]
        right += [u, v]
    return np.append(np.linalg.solve(np.array(rows, float), np.array(right, float)), 1).reshape(3, 3)


def project(matrix: np.ndarray, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    w = matrix[2, 0] * x + matrix[2, 1] * y + matrix[2, 2]
    u = matrix[0, 0] * x + matrix[0, 1] * y + matrix[0, 2]
    v = matrix[1, 0] * x + matrix[1, 1] * y + matrix[1, 2]
    return u / w, v / w


def sample(image: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Bilinear sample of a 2-D or 3-D array at continuous coordinates; the border is repeated."""
    height, width = image.shape[:2]
    x = np.clip(x - 0.5, 0, width - 1)
    y = np.clip(y - 0.5, 0, height - 1)
    x0 = np.minimum(x.astype(int), max(width - 2, 0))
    y0 = np.minimum(y.astype(int), max(height - 2, 0))
    x1, y1 = np.minimum(x0 + 1, width - 1), np.minimum(y0 + 1, height - 1)
    fx, fy = (x - x0).astype(np.float32), (y - y0).astype(np.float32)
    if image.ndim == 3:
        fx, fy = fx[..., None], fy[..., None]
    top = image[y0, x0] * (1 - fx) + image[y0, x1] * fx
    bottom = image[y1, x0] * (1 - fx) + image[y1, x1] * fx
    return top * (1 - fy) + bottom * fy


def area(polygon: np.ndarray) -> float:
    """Signed area; positive for clockwise on screen (y points down)."""
    x, y = polygon[:, 0], polygon[:, 1]
    return float(np.sum(x * np.roll(y, -1) - np.roll(x, -1) * y) / 2)


def intersection(p: np.ndarray, d: np.ndarray, q: np.ndarray, e: np.ndarray) -> np.ndarray | None:
    """Where the line p + s*d meets the line q + t*e; None if they are parallel."""
    cross = d[0] * e[1] - d[1] * e[0]
    if abs(cross) < 1e-9 * np.hypot(*d) * np.hypot(*e):
        return None
    s = ((q[0] - p[0]) * e[1] - (q[1] - p[1]) * e[0]) / cross
    return p + s * d


def convex_hull(points: np.ndarray) -> np.ndarray:
    """Andrew's monotone chain; clockwise on screen."""
    points = np.unique(points, axis=0)

    def half(sequence):
        chain = []
        for p in sequence:
            while len(chain) > 1:
                a, b = chain[-2], chain[-1]
                if (b[0] - a[0]) * (p[1] - a[1]) - (b[1] - a[1]) * (p[0] - a[0]) > 0:
                    break
                chain.pop()
            chain.append(p)
        return chain[:-1]

    return np.array(half(points.tolist()) + half(points[::-1].tolist()))


def enclosing_quadrilateral(hull: np.ndarray) -> np.ndarray | None:
    """Drop hull edges, the cheapest in added area first, until four are left."""
    corners = [np.array(p, float) for p in hull]
    while len(corners) > 4:
        n = len(corners)
        best = None
        for i in range(n):  # drop the edge i..i+1 and let its neighbours meet
            a, b, c, d = (corners[(i + k) % n] for k in (-1, 0, 1, 2))
            meet = intersection(a, b - a, d, c - d)
            if meet is None or np.dot(meet - b, b - a) < 0 or np.dot(meet - c, c - d) < 0:
                continue
            added = abs(area(np.array([b, meet, c])))
            if best is None or added < best[0]:
                best = (added, i, meet)
        if best is None:
            return None
        _, i, meet = best
        corners[i] = meet
        del corners[(i + 1) % n]
    return np.array(corners) if len(corners) == 4 else None


def fit_line(points: np.ndarray, tolerance: float = 0.75) -> tuple[np.ndarray, np.ndarray, float]:
    """Straight line through most of the points: (point on it, direction, share of inliers).

    Consensus over pairs of points first, so that a finger over the edge does not pull the
    line, then least squares on the points that agree.
    """
    rng = np.random.default_rng(0)
    n = len(points)
    best = np.zeros(n, bool)
    for i, j in rng.integers(0, n, (300, 2)):
        d = points[j] - points[i]
        length = np.hypot(*d)
        if length < 1:
            continue
        off = np.abs((points[:, 0] - points[i, 0]) * d[1] - (points[:, 1] - points[i, 1]) * d[0]) / length
        if (off < tolerance).sum() > best.sum():
            best = off < tolerance
    if best.sum() < 2:
        return points[0], np.array([1.0, 0.0]), 0.0
    for _ in range(3):
        centre = points[best].mean(axis=0)
        direction = np.linalg.svd(points[best] - centre, full_matrices=False)[2][0]
        off = np.abs((points[:, 0] - centre[0]) * direction[1] - (points[:, 1] - centre[1]) * direction[0])
        best = off < tolerance
        if best.sum() < 2:
            return centre, direction, 0.0
    return centre, direction, float(best.mean())
