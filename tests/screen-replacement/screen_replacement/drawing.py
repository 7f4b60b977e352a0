"""Draws the example inputs: photos of devices with a green screen, and screenshots for them.

Everything is drawn in linear light at twice the size. A flat thing (desk, keyboard, phone)
is a texture in perspective; a thick one is a stack of such textures; a hand is shaded
from a height field. Because the screen's corners come from the same projection, the truth
about them is known exactly and saved as truth.json.
"""

import json
import math
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from . import geometry, light

INPUTS = Path(__file__).resolve().parent.parent / "inputs"
WIDTH, HEIGHT, SCALE = 1080, 720, 2  # units the scenes are laid out in; canvas pixels per unit
PHOTO = (960, 640)  # what is saved
GREEN = (22, 214, 70)


def make_inputs() -> None:
    desk, corners = laptop_desk()
    _save("laptop-desk", desk, dashboard(), corners)
    phone, corners = phone_tilted()
    _save("phone-tilted", phone, weather_app(), corners)
    _save("no-screen", laptop_desk(with_laptop=False)[0], dashboard(), None)


def _save(name: str, photo: np.ndarray, screenshot: Image.Image, corners: np.ndarray | None) -> None:
    folder = INPUTS / name
    folder.mkdir(parents=True, exist_ok=True)
    light.to_image(photo).save(folder / "photo.png", optimize=True)
    screenshot.save(folder / "screenshot.png", optimize=True)
    if corners is not None:
        corners = corners * (PHOTO[0] / WIDTH)
        truth = {
            "comment": "corners of the screen in pixels: top left, top right, bottom right, bottom left; "
            "the centre of the first pixel is (0.5, 0.5)",
            "corners": [[round(float(x), 3), round(float(y), 3)] for x, y in corners],
        }
        (folder / "truth.json").write_text(json.dumps(truth, indent=2) + "\n")
    print(f"Drew {folder}")


# --- the canvas -------------------------------------------------------------------------


def rgb(*srgb: int) -> np.ndarray:
    return light.to_linear(np.array(srgb, np.uint8))


class Canvas:
    def __init__(self):
        self.w, self.h = WIDTH * SCALE, HEIGHT * SCALE
        self.image = np.zeros((self.h, self.w, 3), np.float32)
        y, x = np.mgrid[0 : self.h, 0 : self.w].astype(np.float32)
        self.x, self.y = (x + 0.5) / SCALE, (y + 0.5) / SCALE  # in photo pixels

    def over(self, colour, mask: np.ndarray, opacity: float = 1.0) -> None:
        m = (mask * opacity)[..., None]
        self.image = self.image * (1 - m) + np.asarray(colour, np.float32) * m

    def shade(self, mask: np.ndarray, strength: float) -> None:
        self.image *= (1 - strength * mask)[..., None]

    def polygon(self, points, soft: float = 0) -> np.ndarray:
        """A filled polygon as a mask, `soft` pixels blurred."""
        mask = Image.new("L", (self.w * 2, self.h * 2))
        ImageDraw.Draw(mask).polygon([(x * SCALE * 2, y * SCALE * 2) for x, y in points], fill=255)
        return self.soften(np.asarray(mask.reduce(2), np.float32) / 255, soft)

    def ellipse(self, cx, cy, rx, ry, angle=0.0, soft: float = 0) -> np.ndarray:
        a = np.linspace(0, 2 * math.pi, 120)
        c, s = math.cos(math.radians(angle)), math.sin(math.radians(angle))
        px, py = rx * np.cos(a), ry * np.sin(a)
        return self.polygon(np.stack([cx + c * px - s * py, cy + s * px + c * py], 1), soft)

    def soften(self, mask: np.ndarray, soft: float) -> np.ndarray:
        return light.blur(mask, soft * SCALE).astype(np.float32) if soft else mask

    def blur(self, sigma: float) -> np.ndarray:
        return np.stack([light.blur(self.image[..., c], sigma * SCALE) for c in range(3)], 2).astype(np.float32)

    def texture(self, texture: Image.Image, quad, gain=1.0) -> np.ndarray:
        """Paint a texture onto a quadrilateral; returns what it covers."""
        colour, mask = self.warped(texture, quad)
        self.over(light.to_linear(colour) * gain, mask)
        return mask

    def warped(self, texture: Image.Image, quad) -> tuple[np.ndarray, np.ndarray]:
        tw, th = texture.size
        frame = np.array([[0, 0], [tw, 0], [tw, th], [0, th]], float)
        m = geometry.homography(np.asarray(quad) * SCALE, frame)
        flat = texture.convert("RGBA").transform(
            (self.w, self.h), Image.Transform.PERSPECTIVE, (m / m[2, 2]).ravel()[:8].tolist(), Image.Resampling.BICUBIC
        )
        array = np.asarray(flat)
        return array[..., :3], array[..., 3].astype(np.float32) / 255

    def finish(self, seed: int, noise: float = 0.6) -> np.ndarray:
        """Lens blur, vignette, down to photo size, noise. Linear light.

        The noise is as coarse as a phone's processing leaves it: grains of 2 by 2 pixels.
        """
        image = self.blur(0.45)
        w, h = PHOTO
        image = np.stack([Image.fromarray(image[..., k]).resize(PHOTO, Image.Resampling.BOX) for k in range(3)], 2)
        y, x = np.mgrid[0:h, 0:w]
        image *= (1 - 0.45 * ((x / w - 0.5) ** 2 + (y / h - 0.5) ** 2))[..., None]
        grain = np.random.default_rng(seed).normal(0, noise, (h // 2, w // 2, 1)).repeat(2, 0).repeat(2, 1)
        return light.to_linear(np.rint(np.clip(light.to_srgb(image) + grain, 0, 255)).astype(np.uint8))


class Camera:
    def __init__(self, at, to, focal: float, centre=(WIDTH / 2, HEIGHT / 2)):
        self.at = np.array(at, float)
        forward = np.array(to, float) - self.at
        forward /= np.linalg.norm(forward)
        right = np.cross(forward, [0, 0, 1])
        right /= np.linalg.norm(right)
        self.axes = np.stack([right, np.cross(forward, right), forward])
        self.focal, self.centre = focal, np.array(centre, float)

    def __call__(self, points) -> np.ndarray:
        p = (np.atleast_2d(np.asarray(points, float)) - self.at) @ self.axes.T
        return self.centre + self.focal * p[:, :2] / p[:, 2:]


def flat(x0, y0, x1, y1, z, turn=0.0):
    """Corners of a rectangle lying at height z: far left, far right, near right, near left."""
    cx, cy = (x0 + x1) / 2, (y0 + y1) / 2
    c, s = math.cos(math.radians(turn)), math.sin(math.radians(turn))
    return [
        (cx + c * (x - cx) - s * (y - cy), cy + s * (x - cx) + c * (y - cy), z)
        for x, y in ((x0, y1), (x1, y1), (x1, y0), (x0, y0))
    ]


def rounded(size, radius, colour) -> Image.Image:
    image = Image.new("RGBA", size, (*colour[:3], 0))
    ImageDraw.Draw(image).rounded_rectangle((0, 0, size[0] - 1, size[1] - 1), radius, fill=(*colour, 255))
    return image


# --- a laptop on a desk -----------------------------------------------------------------


def wood() -> Image.Image:
    rng = np.random.default_rng(4)
    h, w = 900, 1500
    grain = np.zeros((h, w))
    for across, along, strength in ((1.2, 260, 1.0), (4, 400, 1.6), (18, 500, 2.2)):
        layer = rng.normal(size=(h, w))
        layer = np.fft.ifft2(
            np.fft.fft2(layer)
            * np.exp(-((np.fft.fftfreq(h)[:, None] * across * 4) ** 2) - (np.fft.fftfreq(w)[None] * along) ** 2)
        ).real
        grain += strength * layer / layer.std()
    grain /= grain.std()
    tone = np.repeat(rng.normal(0, 1, 6), h // 6)[:, None]
    value = 1 + 0.035 * grain + 0.025 * tone
    for y in range(0, h, h // 6):  # the joints between the planks
        value[y : y + 2] *= 0.8
    return Image.fromarray(np.clip(np.array([186, 143, 104]) * value[..., None], 0, 255).astype(np.uint8), "RGB")


def keyboard() -> Image.Image:
    deck = rounded((1280, 880), 44, (188, 191, 196))
    draw = ImageDraw.Draw(deck)
    draw.rounded_rectangle((112, 70, 1168, 470), 14, fill=(150, 153, 158, 255))
    rows = [[1] * 14, [1.4] + [1] * 12 + [1.4], [1.7] + [1] * 11 + [1.9], [2.2] + [1] * 10 + [2.4], [1, 1, 1, 1.3, 6.2, 1.3, 1, 1, 1]]
    y = 80
    for keys in rows:
        unit = (1040 - 8 * (len(keys) - 1)) / sum(keys)
        x = 120.0
        for k in keys:
            draw.rounded_rectangle((x, y, x + k * unit, y + 68), 9, fill=(38, 39, 43, 255))
            draw.line((x + 8, y + 2, x + k * unit - 8, y + 2), fill=(70, 72, 77, 255), width=3)
            x += k * unit + 8
        y += 77
    draw.rounded_rectangle((420, 515, 860, 835), 18, fill=(178, 181, 187, 255), outline=(158, 161, 167, 255), width=4)
    return deck


LID_SCREEN = (22, 26, 1258, 798)  # in the lid's texture


def lid() -> Image.Image:
    image = rounded((1280, 850), 34, (176, 179, 184))
    draw = ImageDraw.Draw(image)
    draw.rounded_rectangle((5, 5, 1274, 844), 30, fill=(17, 18, 20, 255))
    draw.ellipse((635, 9, 645, 19), fill=(40, 44, 54, 255))
    x0, y0, x1, y1 = LID_SCREEN
    draw.rectangle((x0, y0, x1 - 1, y1 - 1), fill=(*GREEN, 255))
    return image


def laptop_desk(with_laptop: bool = True) -> tuple[np.ndarray, np.ndarray | None]:
    c = Canvas()
    cam = Camera((-27, -58, 40), (1.2, 0.5, 6.6), 1190)

    # The room, far out of focus: wall, window light, a picture, a plant.
    c.image[:] = rgb(205, 200, 190) * (1.15 - 0.75 * c.x / WIDTH)[..., None]
    c.over(rgb(255, 250, 236) * 1.3, c.polygon([(-60, -80), (190, -80), (190, 150), (-60, 170)]), 0.75)
    for x in (52, 150):
        c.over(rgb(170, 160, 146), c.polygon([(x, -80), (x + 9, -80), (x + 9, 160), (x, 160)]), 0.8)
    c.over(rgb(92, 74, 62), c.polygon([(770, -40), (950, -40), (950, 118), (770, 118)]))
    c.over(rgb(214, 203, 186), c.polygon([(782, -40), (938, -40), (938, 106), (782, 106)]))
    c.over(rgb(176, 108, 84), c.ellipse(845, 30, 44, 44))
    c.over(rgb(74, 96, 112), c.polygon([(782, 106), (850, 38), (890, 72), (938, 50), (938, 106)]))
    c.image = c.blur(9)

    # The desk, sharp in the middle, softer towards the back.
    c.texture(wood(), cam(flat(-95, -62, 95, 44, 0)), (1.22 - 0.62 * c.x / WIDTH)[..., None])
    far = np.clip((330 - c.y) / 200, 0, 1)[..., None]
    c.image = c.image * (1 - far) + c.blur(5) * far
    _plant(c, cam)

    corners = None
    if with_laptop:
        corners = _laptop(c, cam)
    _notebook(c, cam)
    _mug(c, cam, 25.5, -2.5)
    for x, y in ((7.2, -20.4), (10.4, -19.0)):  # green specks that must not be taken for a screen
        (px, py), = cam((x, y, 0.4))
        c.shade(c.ellipse(px + 5, py + 3, 8, 4, soft=2.0), 0.5)
        c.over(rgb(12, 150, 40), c.ellipse(px, py, 6.4, 5.8))
        c.over(rgb(24, 210, 66), c.ellipse(px - 1, py - 1.4, 4.2, 3.6, soft=1.0))
        c.over(rgb(230, 255, 235), c.ellipse(px - 2.2, py - 2.4, 1.3, 1.0), 0.8)
    return c.finish(11), corners


def _laptop(c: Canvas, cam: Camera) -> np.ndarray:
    half, depth, thick, tilt = 16, 22, 1.5, math.radians(17)
    y_front, y_hinge = -13, 9
    c.shade(c.polygon(cam(flat(-half + 0.5, y_front - 1.2, half + 5.5, y_hinge + 3, 0)), 9), 0.55)
    c.shade(c.polygon(cam(flat(-half, y_front - 0.2, half + 0.8, y_hinge, 0)), 2), 0.6)

    deck = keyboard()
    layers = 14
    for i in range(layers):
        z = 0.25 + (thick - 0.25) * i / layers
        edge = 96 + 70 * math.sin(math.pi * min(1, (i + 2) / layers) / 2)
        c.texture(rounded(deck.size, 44, (int(edge), int(edge + 2), int(edge + 6))), cam(flat(-half, y_front, half, y_hinge, z)))
    c.texture(deck, cam(flat(-half, y_front, half, y_hinge, thick)), (1.12 - 0.35 * c.x / WIDTH)[..., None])

    up = np.array([0, math.sin(tilt), math.cos(tilt)])
    hinge = np.array([0, y_hinge - 0.6, thick - 0.2])
    tall = 2 * half * 850 / 1280

    def on_lid(u, v, back=0.0):  # u, v in 0..1 from the top left of the lid
        normal = np.array([0, math.cos(tilt), -math.sin(tilt)])
        return hinge + np.array([(2 * u - 1) * half, 0, 0]) + up * tall * (1 - v) + normal * back

    def quad(back=0.0):
        return cam([on_lid(u, v, back) for u, v in ((0, 0), (1, 0), (1, 1), (0, 1))])

    for back in np.linspace(0.6, 0.05, 8):
        c.texture(rounded((1280, 850), 34, (150, 153, 158)), quad(back))
    texture = lid()
    x0, y0, x1, y1 = LID_SCREEN
    corners = cam([on_lid(x / 1280, y / 850) for x, y in ((x0, y0), (x1, y0), (x1, y1), (x0, y1))])
    c.texture(texture, quad(), (1.06 - 0.22 * c.x / WIDTH - 0.06 * c.y / HEIGHT)[..., None])

    # The screen lights its surroundings a little, and the window is reflected in it.
    glow = c.polygon(corners)
    inside = glow.copy()
    keys = c.polygon(cam(flat(-half, y_front, half, y_hinge, thick)))
    spill = c.soften(glow, 26) * np.clip(keys + 0.25, 0, 1) * (1 - inside)
    c.image += rgb(*GREEN) * (0.045 * spill)[..., None]
    left = corners[0] * 0.72 + corners[1] * 0.28, corners[0] * 0.55 + corners[1] * 0.45
    low = corners[3] * 0.9 + corners[2] * 0.1, corners[3] * 0.76 + corners[2] * 0.24
    streak = c.polygon([left[0], left[1], low[1], low[0]], 9) * inside
    c.image += (0.014 * streak)[..., None] * rgb(255, 250, 240)
    return corners


def _plant(c: Canvas, cam: Camera) -> None:
    rng = np.random.default_rng(8)
    (x, y), = cam((-22.5, 26, 0))
    c.shade(c.ellipse(x + 22, y - 2, 56, 15, soft=7), 0.5)
    for angle, length in sorted(zip(rng.uniform(-68, 68, 26), rng.uniform(60, 128, 26)), key=lambda p: -abs(p[0])):
        a = math.radians(angle)
        tone = rng.uniform(0.75, 1.15)
        cx, cy = x + math.sin(a) * length * 0.62, y - 62 - math.cos(a) * length * 0.62
        c.over(rgb(84, 116, 72) * tone, c.ellipse(cx, cy, 11, length * 0.46, angle))
        c.over(rgb(112, 142, 92) * tone, c.ellipse(cx - 3, cy, 3.5, length * 0.40, angle), 0.6)
    pot = c.polygon([(x - 36, y - 66), (x + 36, y - 66), (x + 27, y + 3), (x + 12, y + 9), (x - 12, y + 9), (x - 27, y + 3)])
    c.over(rgb(206, 196, 184) * (1.1 - 0.75 * np.clip((c.x - x + 36) / 72, 0, 1))[..., None], pot)
    c.image = c.blur(2.6)


def _notebook(c: Canvas, cam: Camera) -> None:
    x0, y0, x1, y1, turn = -33, -19, -20.5, -1, 14
    shadow = cam(flat(x0 + 0.8, y0 - 0.5, x1 + 1.4, y1, 0, turn))
    c.shade(c.polygon(shadow, 4), 0.6)
    size = (520, 740)
    for i in range(12):
        tone = (52, 66, 88) if i in (0, 1) else ((232, 226, 214) if i % 2 else (212, 205, 192))
        c.texture(rounded(size, 18, tone), cam(flat(x0, y0, x1, y1, 0.1 + i * 0.11, turn)), 0.85)
    cover = rounded(size, 18, (58, 74, 98))
    draw = ImageDraw.Draw(cover)
    draw.rectangle((56, 0, 62, 740), fill=(44, 57, 78, 255))
    draw.rectangle((438, 0, 456, 740), fill=(182, 98, 70, 255))
    draw.rounded_rectangle((150, 120, 370, 220), 6, fill=(226, 219, 204, 255))
    for y in (152, 176):
        draw.line((176, y, 344, y), fill=(150, 142, 128, 255), width=4)
    c.texture(cover, cam(flat(x0, y0, x1, y1, 1.45, turn)), (1.25 - 0.5 * c.x / WIDTH)[..., None])

    # A pencil on it.
    a, b = np.array([-29.6, -15.5, 1.9]), np.array([-23.6, -2.5, 1.9])
    (ax, ay), (bx, by) = cam([a, b])
    d = np.array([bx - ax, by - ay]) / math.hypot(bx - ax, by - ay)
    n = np.array([-d[1], d[0]])

    def piece(t0, t1, w0, w1):
        p, q = np.array([ax, ay]) + t0 * np.array([bx - ax, by - ay]), np.array([ax, ay]) + t1 * np.array([bx - ax, by - ay])
        return [p + n * w0, q + n * w1, q - n * w1, p - n * w0]

    c.shade(c.polygon(np.array(piece(0, 1, 3, 3)) + (5, 4), 2), 0.5)
    c.over(rgb(224, 168, 60), c.polygon(piece(0.08, 0.86, 4.0, 3.3)))
    c.over(rgb(250, 212, 120), c.polygon(np.array(piece(0.08, 0.86, 1.2, 1.0)) - n * 1.6))
    c.over(rgb(176, 178, 182), c.polygon(piece(0.03, 0.08, 4.1, 4.0)))
    c.over(rgb(196, 110, 104), c.polygon(piece(0.0, 0.03, 3.8, 4.1)))
    c.over(rgb(226, 192, 150), c.polygon(piece(0.86, 0.97, 3.3, 1.0)))
    c.over(rgb(40, 38, 38), c.polygon(piece(0.95, 1.0, 1.4, 0.3)))


def _mug(c: Canvas, cam: Camera, x: float, y: float) -> None:
    r, tall = 4.3, 9.6
    a = np.linspace(0, 2 * math.pi, 160, endpoint=False)

    def ring(z, radius):
        return cam(np.stack([x + radius * np.cos(a), y + radius * np.sin(a), np.full_like(a, z)], 1))

    c.shade(c.polygon(ring(0, r) + (46, 10), 13), 0.45)
    c.shade(c.polygon(ring(0, r * 1.04) + (7, 2), 3), 0.6)
    # The handle: a thick ring at the right, in the plane facing the camera.
    axis = np.array([math.cos(-0.35), math.sin(-0.35), 0])
    t = np.linspace(-1.75, 1.75, 60)
    base = np.array([x, y, 0]) + axis * (r - 0.4)
    path = cam([base + axis * 3.4 * math.cos(s) + np.array([0, 0, 5 + 3.1 * math.sin(s)]) for s in t])
    radius = np.full(len(path), 7.0)
    body = rgb(72, 92, 108)
    _tube(c, path, radius, body)
    top, bottom = ring(tall, r), ring(0.15, r * 0.94)
    hull = geometry.convex_hull(np.concatenate([top, bottom]))
    u = np.clip((c.x - top[:, 0].min()) / np.ptp(top[:, 0]), 0, 1)
    lit = 0.28 + 0.95 * np.exp(-(((u - 0.24) / 0.26) ** 2)) + 0.10 * np.exp(-(((u - 0.97) / 0.08) ** 2))
    c.over(body * lit[..., None] + 0.10 * np.exp(-(((u - 0.2) / 0.045) ** 2))[..., None], c.polygon(hull))
    c.over(rgb(128, 146, 160) * 1.1, c.polygon(top))
    c.over(rgb(58, 70, 80) * (0.5 + 0.9 * u)[..., None], c.polygon(ring(tall, r * 0.91)))
    coffee = c.polygon(ring(tall - 1.5, r * 0.90)) * c.polygon(ring(tall, r * 0.91))
    c.over(rgb(64, 38, 22), coffee)
    c.over(rgb(150, 106, 70), coffee * (1 - c.polygon(ring(tall - 1.5, r * 0.84))), 0.6)


def _tube(c: Canvas, path: np.ndarray, radius: np.ndarray, colour) -> None:
    pieces = [(*p, r, *q, s) for p, r, q, s in zip(path, radius, path[1:], radius[1:])]
    blob, shape, (nx, ny, nz) = _blob(c, pieces, 1.0)
    lit = np.clip(0.25 + 0.8 * np.clip(-0.5 * nx - 0.55 * ny + 0.65 * nz, 0, 1), 0, 2)
    c.over(colour * lit[..., None], shape)


# --- a phone in a hand ------------------------------------------------------------------


def _blob(c: Canvas, capsules, blend: float):
    """Tapered capsules melted together: (height, mask, normals).

    Each capsule (x0, y0, r0, x1, y1, r1) has the field r² - d²; where the largest is positive
    there is skin, and its root is the height, which makes every capsule round.
    """
    field = np.full(c.x.shape, -1e9, np.float32)
    for x0, y0, r0, x1, y1, r1 in capsules:
        reach = max(r0, r1) * 1.6 + 4
        ys = slice(max(0, int((min(y0, y1) - reach) * SCALE)), max(0, int((max(y0, y1) + reach) * SCALE)))
        xs = slice(max(0, int((min(x0, x1) - reach) * SCALE)), max(0, int((max(x0, x1) + reach) * SCALE)))
        x, y = c.x[ys, xs], c.y[ys, xs]
        if not x.size:
            continue
        dx, dy = x1 - x0, y1 - y0
        t = np.clip(((x - x0) * dx + (y - y0) * dy) / max(dx * dx + dy * dy, 1e-6), 0, 1)
        r = r0 + t * (r1 - r0)
        value = r * r - (x - x0 - t * dx) ** 2 - (y - y0 - t * dy) ** 2
        k = blend * r
        old = field[ys, xs]
        h = np.clip(0.5 + 0.5 * (value - old) / np.maximum(k, 1e-3), 0, 1)
        joined = old * (1 - h) + value * h + k * h * (1 - h)
        field[ys, xs] = np.where(old < -1e8, value, joined)
    gy, gx = np.gradient(field, 1 / SCALE)
    steep = np.hypot(gx, gy)
    mask = np.clip(0.5 + field / np.maximum(steep, 1e-3) * SCALE, 0, 1)
    mask[field < -2 * max(max(p[2], p[5]) for p in capsules)] = 0  # more than a pixel outside
    height = np.sqrt(np.clip(field, 0, None))
    nx, ny = -gx / 2, -gy / 2
    norm = np.sqrt(nx * nx + ny * ny + height * height) + 1e-6
    return height, mask.astype(np.float32), (nx / norm, ny / norm, height / norm)


SKIN = (222, 168, 138)


def _skin(c: Canvas, capsules, mottle: np.ndarray, blend=6.0, cast=None) -> np.ndarray:
    _, mask, (nx, ny, nz) = _blob(c, capsules, blend)
    if cast is not None:
        (dx, dy, soft, strength, where) = cast
        right, down = dx * SCALE, dy * SCALE
        moved = np.pad(c.soften(mask, soft), ((down, 0), (right, 0)))[: c.h, : c.w]
        c.shade(moved * where, strength)
    key = np.clip(-0.62 * nx - 0.45 * ny + 0.64 * nz, 0, 1)
    rim = np.clip(0.85 * nx + 0.1 * ny + 0.12, 0, 1) ** 2 * (1 - nz)
    lit = (0.20 + 0.86 * key)[..., None] * np.array([1.0, 1.0, 1.0])
    lit = lit * np.array([1.0, 0.86, 0.78]) ** ((1 - key)[..., None] * 1.5)  # light inside the skin is red
    colour = rgb(*SKIN) * lit * mottle[..., None] + rim[..., None] * np.array([0.20, 0.14, 0.09])
    gloss = np.clip(-0.42 * nx - 0.36 * ny + 0.83 * nz, 0, 1) ** 26
    c.over(colour + 0.05 * gloss[..., None], mask)
    return mask


def phone_tilted() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(21)
    c = Canvas()

    # Out of focus: an evening street with lights.
    v = (c.y / HEIGHT)[..., None]
    c.image[:] = rgb(56, 66, 92) * (1 - v) + rgb(62, 46, 44) * v
    c.over(rgb(94, 108, 140), c.polygon([(-20, -20), (420, -20), (330, 330), (-20, 380)], 50), 0.8)
    c.over(rgb(118, 84, 66), c.polygon([(640, 120), (1100, 40), (1100, 520), (700, 520)], 60), 0.8)
    c.over(rgb(36, 34, 40), c.polygon([(-20, 520), (1100, 470), (1100, 740), (-20, 740)], 40), 0.75)
    warm = [(255, 196, 120), (255, 170, 96), (255, 222, 170), (240, 120, 84), (150, 190, 230)]
    for _ in range(34):
        x, y = rng.uniform(-20, WIDTH + 20), rng.normal(265, 120)
        r, tone = rng.uniform(14, 40), rgb(*warm[rng.integers(len(warm))])
        disc = c.ellipse(x, y, r, r, soft=1.0)
        edge = disc - c.ellipse(x, y, r * 0.86, r * 0.86, soft=1.6) * 0.9
        c.image += (tone * rng.uniform(0.10, 0.42)) * (disc * 0.75 + np.clip(edge, 0, 1) * 0.5)[..., None]
    c.image = c.blur(1.6)

    # The phone, turned about all three axes.
    def turn(axis, degrees):
        a = math.radians(degrees)
        m = np.eye(3)
        i, j = [(1, 2), (2, 0), (0, 1)][axis]
        m[i, i], m[i, j], m[j, i], m[j, j] = math.cos(a), -math.sin(a), math.sin(a), math.cos(a)
        return m

    rotation = turn(2, 13) @ turn(1, -31) @ turn(0, 27)

    def at(u, v, back=0.0):  # u, v in 0..1 on the front; back in cm behind it
        p = rotation @ np.array([(u - 0.5) * 7.2, (v - 0.5) * 15.2, back])
        return np.array([600, 352]) + 1010 * p[:2] / (27 + p[2])

    def quad(back=0.0):
        return [at(0, 0, back), at(1, 0, back), at(1, 1, back), at(0, 1, back)]

    size, radius, inset = (720, 1520), 104, 27
    mottle = light.blur(rng.normal(size=c.x.shape), 9)
    mottle = 1 + 0.03 * (mottle / mottle.std()).astype(np.float32)

    # Behind the phone: wrist and palm.
    wrist = (310, 790, 100)
    palm = [
        (*wrist, *at(0.22, 0.94), 84),
        (*at(0.22, 0.94), 84, *at(0.46, 0.80), 82),
        (*at(0.46, 0.80), 82, *at(0.74, 0.62), 76),
    ]
    _skin(c, palm, mottle)
    c.shade(c.polygon(quad(0.8), 14), 0.55)

    layers = 12
    for i in range(layers):
        back = 0.8 * (1 - i / layers)
        tone = 62 + 78 * math.sin(math.pi * (i + 0.5) / layers) ** 0.7
        c.texture(rounded(size, radius, (int(tone), int(tone * 0.99), int(tone * 1.02))), quad(back))
    front = rounded(size, radius, (150, 148, 152))
    draw = ImageDraw.Draw(front)
    draw.rounded_rectangle((5, 5, size[0] - 6, size[1] - 6), radius - 5, fill=(12, 12, 14, 255))
    draw.rounded_rectangle((inset, inset, size[0] - inset - 1, size[1] - inset - 1), radius - inset, fill=(*GREEN, 255))
    draw.ellipse((342, 52, 378, 88), fill=(10, 10, 12, 255))
    draw.ellipse((354, 62, 366, 74), fill=(28, 32, 52, 255))
    c.texture(front, quad(), (1.05 - 0.16 * c.y / HEIGHT - 0.05 * c.x / WIDTH)[..., None])
    u0, v0 = inset / size[0], inset / size[1]
    corners = np.array([at(u, v) for u, v in ((u0, v0), (1 - u0, v0), (1 - u0, 1 - v0), (u0, 1 - v0))])
    screen = c.polygon(corners)

    # In front of it: four fingertips round the right edge, the thumb along the left one.
    for v, far, r in ((0.41, 0.085, 20), (0.535, 0.105, 22), (0.665, 0.10, 22), (0.78, 0.075, 19)):
        tip, knuckle, root = at(1.012, v - 0.012), at(1.012 + far, v + 0.004), at(1.06, v + 0.03, 1.4)
        finger = [(*root, r, *knuckle, r * 1.02), (*knuckle, r * 1.02, *tip, r * 0.72)]
        _skin(c, finger, mottle, cast=(3, 4, 5, 0.5, 1 - screen))
    base, joint, tip = at(-0.15, 0.90), at(-0.125, 0.66), at(-0.005, 0.485)
    thumb = [(*wrist, *base, 50), (*base, 50, *joint, 31), (*joint, 31, *tip, 24)]
    mask = _skin(c, thumb, mottle, cast=(6, 6, 8, 0.5, 1 - screen))
    _thumb_details(c, joint, tip, mask)
    _sleeve(c)

    glow = c.soften(screen, 20) * (1 - screen)
    c.image += rgb(*GREEN) * (0.05 * glow)[..., None] * np.clip(c.image.mean(axis=2, keepdims=True) * 5, 0.2, 1)
    return c.finish(12), corners


def _sleeve(c: Canvas) -> None:
    x0, y0, dx, dy = 372, 646, 0.40, -0.92  # middle of the cuff, direction of the arm
    along = (c.x - x0) * dx + (c.y - y0) * dy
    across = (c.x - x0) * -dy + (c.y - y0) * dx
    end = 12 - across**2 / 900  # the cuff's edge is round
    _, mask, (nx, ny, nz) = _blob(c, [(x0 - 300 * dx, y0 - 300 * dy, 178, x0 + 160 * dx, y0 + 160 * dy, 134)], 4)
    c.shade(c.soften(mask * (along < end + 7), 5) * (along >= end), 0.6)
    key = np.clip(-0.62 * nx - 0.45 * ny + 0.64 * nz, 0, 1)
    ribs = 1 + 0.14 * np.sin(across / 2.6) - 0.45 * np.exp(-(((along - end + 46) / 3) ** 2))
    ribs = ribs + 0.25 * np.exp(-(((along - end + 2) / 2.5) ** 2))
    c.over(rgb(52, 68, 98) * ((0.14 + 0.85 * key) * ribs)[..., None], mask * np.clip(0.5 + (end - along) * SCALE, 0, 1))


def _thumb_details(c: Canvas, joint, tip, mask) -> None:
    d = (tip - joint) / np.hypot(*(tip - joint))
    angle = math.degrees(math.atan2(d[1], d[0]))
    # The nail, seen at an angle.
    n = np.array([d[1], -d[0]])
    cx, cy = tip + d * 5 - n * 5
    nail = c.ellipse(cx, cy, 19, 13, angle, soft=0.8) * mask
    c.shade(c.ellipse(cx - d[0] * 2, cy - d[1] * 2, 21.5, 15, angle, soft=1.4) * mask, 0.20)
    c.over(rgb(236, 184, 166), nail, 0.75)
    c.over(rgb(255, 240, 230), c.ellipse(cx + d[0] * 12, cy + d[1] * 12, 5, 9.5, angle, soft=1.5) * nail, 0.5)
    c.over(rgb(255, 246, 240), c.ellipse(cx - 3, cy - 4, 9, 2.6, angle, soft=1.8) * nail, 0.6)
    # Creases over the joint.
    for k in (-6, 0, 5):
        p = joint + d * (k + 4)
        c.shade(c.ellipse(*p, 1.3, 17, angle + 4 * k / 5, soft=1.3) * mask, 0.22)


# --- screenshots ------------------------------------------------------------------------


def _font(size: int):
    return ImageFont.load_default(size)


def _text(draw, at, text, size, fill, bold=False, anchor="la") -> None:
    draw.text(at, text, fill=fill, font=_font(size), anchor=anchor, stroke_width=0.6 if bold else 0, stroke_fill=fill)


def dashboard() -> Image.Image:
    """A project overview, in the proportions of the laptop's screen."""
    w, h = 1236, 772
    image = Image.new("RGB", (w, h), (245, 246, 250))
    d = ImageDraw.Draw(image)
    ink, soft, blue, coral, teal = (30, 36, 54), (128, 136, 156), (66, 98, 222), (236, 110, 86), (38, 160, 152)
    d.rectangle((0, 0, 216, h), fill=(27, 33, 54))
    d.rounded_rectangle((26, 26, 58, 58), 9, fill=coral)
    _text(d, (72, 29), "Northlight", 22, (255, 255, 255), True)
    for i, item in enumerate(("Overview", "Schedule", "Locations", "Crew", "Budget", "Reports")):
        y = 104 + i * 50
        if i == 0:
            d.rounded_rectangle((14, y - 12, 202, y + 30), 9, fill=(52, 62, 98))
        d.rounded_rectangle((30, y, 46, y + 16), 4, fill=(255, 255, 255) if i == 0 else (98, 108, 144))
        _text(d, (62, y - 2), item, 18, (255, 255, 255) if i == 0 else (164, 172, 200))
    d.ellipse((26, h - 66, 64, h - 28), fill=teal)
    _text(d, (45, h - 47), "MK", 15, (255, 255, 255), True, "mm")
    _text(d, (76, h - 57), "Mara Keller", 16, (226, 230, 244))

    _text(d, (252, 30), "Overview", 32, ink, True)
    _text(d, (252, 70), "Week 14, four shooting days left", 17, soft)
    d.rounded_rectangle((1062, 34, 1200, 76), 10, fill=blue)
    _text(d, (1131, 55), "New day", 18, (255, 255, 255), True, "mm")

    cards = (("Scenes shot", "128", "of 164", blue), ("Days on plan", "96 %", "up 3 %", teal), ("Overtime", "11 h", "down 4 h", coral))
    for i, (title, value, note, colour) in enumerate(cards):
        x = 252 + i * 320
        d.rounded_rectangle((x, 112, x + 308, 232), 14, fill=(255, 255, 255), outline=(228, 231, 240), width=2)
        d.rounded_rectangle((x + 22, 132, x + 28, 212), 3, fill=colour)
        _text(d, (x + 46, 130), title, 17, soft)
        _text(d, (x + 46, 158), value, 46, ink, True)
        _text(d, (x + 286, 196), note, 17, colour, True, "ra")

    d.rounded_rectangle((252, 252, 868, 552), 14, fill=(255, 255, 255), outline=(228, 231, 240), width=2)
    _text(d, (276, 270), "Scenes per day", 20, ink, True)
    for k in range(5):
        y = 500 - k * 46
        d.line((320, y, 846, y), fill=(234, 236, 244), width=2)
        _text(d, (306, y), str(k * 3), 14, soft, anchor="rm")
    values = [4, 6, 5, 8, 7, 10, 9, 11, 8, 10, 12, 11]
    points = [(330 + i * 46, 500 - v / 3 * 46) for i, v in enumerate(values)]
    big = Image.new("L", (w * 3, h * 3))
    bd = ImageDraw.Draw(big)
    bd.polygon([(x * 3, y * 3) for x, y in [(330, 500), *points, (836, 500)]], fill=46)
    image.paste(blue, mask=big.resize((w, h), Image.Resampling.BOX))
    big = Image.new("L", (w * 3, h * 3))
    bd = ImageDraw.Draw(big)
    bd.line([(x * 3, y * 3) for x, y in points], fill=255, width=12, joint="curve")
    for x, y in points:
        bd.ellipse((x * 3 - 16, y * 3 - 16, x * 3 + 16, y * 3 + 16), fill=255)
    image.paste(blue, mask=big.resize((w, h), Image.Resampling.BOX))
    for i in range(0, 12, 2):
        _text(d, (330 + i * 46, 524), f"{3 + i} Apr", 14, soft, anchor="mm")

    d.rounded_rectangle((888, 252, 1200, 552), 14, fill=(255, 255, 255), outline=(228, 231, 240), width=2)
    _text(d, (912, 270), "Budget", 20, ink, True)
    ring = Image.new("RGBA", (600, 600))
    rd = ImageDraw.Draw(ring)
    start = -90
    for share, colour in ((0.46, blue), (0.27, teal), (0.15, coral), (0.12, (222, 226, 236))):
        rd.arc((30, 30, 570, 570), start, start + share * 360, fill=(*colour, 255), width=100)
        start += share * 360
    ring = ring.resize((190, 190), Image.Resampling.LANCZOS)
    image.paste(ring, (949, 314), ring)
    _text(d, (1044, 402), "88 %", 34, ink, True, "mm")
    _text(d, (1044, 432), "spent", 16, soft, anchor="mm")
    for x, label, colour in ((912, "Crew", blue), (1004, "Sets", teal), (1090, "Travel", coral)):
        d.ellipse((x, 521, x + 12, 533), fill=colour)
        _text(d, (x + 20, 527), label, 16, soft, anchor="lm")

    d.rounded_rectangle((252, 572, 1200, 748), 14, fill=(255, 255, 255), outline=(228, 231, 240), width=2)
    rows = (
        ("Scene 41", "Harbour, dawn", "06:10", "Ready", teal),
        ("Scene 42", "Ferry deck", "09:30", "Ready", teal),
        ("Scene 57", "Kitchen, night", "18:45", "Waiting", coral),
    )
    for i, (scene, place, at, state, colour) in enumerate(rows):
        y = 602 + i * 54
        if i:
            d.line((276, y - 15, 1176, y - 15), fill=(236, 238, 245), width=2)
        _text(d, (276, y), scene, 19, ink, True)
        _text(d, (470, y), place, 19, ink)
        _text(d, (800, y), at, 19, soft)
        d.rounded_rectangle((1046, y - 5, 1170, y + 27), 16, fill=tuple(int(255 - (255 - v) * 0.16) for v in colour))
        _text(d, (1108, y + 11), state, 16, colour, True, "mm")
    return image


def weather_app() -> Image.Image:
    """A weather page, in the proportions of the phone's screen."""
    w, h = 666, 1466
    y, x = np.mgrid[0:h, 0:w] / np.array([h, w]).reshape(2, 1, 1)
    stops, colours = [0, 0.25, 0.48, 1], np.array([[44, 58, 122], [132, 96, 160], [250, 164, 128], [255, 206, 150]])
    sky = np.stack([np.interp(y, stops, colours[:, k]) for k in range(3)], 2)
    image = Image.fromarray(sky.astype(np.uint8), "RGB")

    def ridge(base, tall, seed, colour):
        rng = np.random.default_rng(seed)
        line = np.zeros(w)
        for f in (1, 2, 4, 8):
            line += np.sin(np.arange(w) / w * 2 * math.pi * f * rng.uniform(0.6, 1.1) + rng.uniform(0, 6)) / f
        mask = (np.mgrid[0:h, 0:w][0] > base - tall * line)
        image.paste(colour, mask=Image.fromarray((mask * 255).astype(np.uint8)))

    sun = Image.new("L", (w * 2, h * 2))
    ImageDraw.Draw(sun).ellipse((820, 1010, 1120, 1310), fill=255)
    image.paste((255, 236, 200), mask=sun.resize((w, h), Image.Resampling.BOX))
    ridge(690, 34, 1, (176, 104, 132))
    ridge(740, 30, 5, (112, 74, 122))
    ridge(800, 24, 9, (58, 48, 96))
    d = ImageDraw.Draw(image)
    white = (255, 255, 255)
    _text(d, (84, 44), "18:42", 30, white, True)
    d.rounded_rectangle((536, 50, 586, 74), 7, outline=white, width=3)
    d.rounded_rectangle((541, 55, 571, 69), 3, fill=white)
    _text(d, (56, 150), "Porto Sereno", 46, white, True)
    _text(d, (56, 210), "Tuesday evening", 30, (236, 226, 242))
    _text(d, (48, 268), "18°", 190, white, True)
    _text(d, (60, 478), "Clear until midnight", 34, white)
    d.rounded_rectangle((0, 836, w, h + 80), 60, fill=(250, 248, 250))
    ink, soft, warm = (42, 38, 66), (140, 134, 156), (240, 140, 96)
    for i, (at, deg) in enumerate((("19", 17), ("20", 16), ("21", 15), ("22", 14), ("23", 14))):
        x0 = 40 + i * 120
        d.rounded_rectangle((x0, 880, x0 + 106, 1060), 28, fill=(58, 48, 96) if i == 0 else (240, 236, 244))
        tone = white if i == 0 else ink
        _text(d, (x0 + 53, 912), at + ":00", 25, tone if i == 0 else soft, anchor="mm")
        d.ellipse((x0 + 33, 942, x0 + 73, 982), fill=warm if i < 2 else (124, 122, 188))
        if i >= 2:
            d.ellipse((x0 + 45, 936, x0 + 81, 972), fill=(240, 236, 244))
        _text(d, (x0 + 55, 1024), f"{deg}°", 36, tone, True, "mm")
    for i, (day, low, high) in enumerate((("Wed", 12, 21), ("Thu", 13, 23), ("Fri", 11, 19), ("Sat", 10, 17))):
        y0 = 1116 + i * 76
        _text(d, (52, y0), day, 34, ink, True, "lm")
        _text(d, (200, y0), f"{low}°", 32, soft, anchor="mm")
        d.rounded_rectangle((244, y0 - 8, 520, y0 + 8), 8, fill=(230, 226, 236))
        d.rounded_rectangle((244 + (low - 9) * 18, y0 - 8, 244 + (high - 9) * 19, y0 + 8), 8, fill=warm)
        _text(d, (574, y0), f"{high}°", 32, ink, True, "mm")
    d.rounded_rectangle((240, 1434, 426, 1442), 4, fill=(90, 84, 110))
    return image
