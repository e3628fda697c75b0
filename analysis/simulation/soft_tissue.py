"""Soft tissue of the trunk, painted from the outside inwards: wall, back, chest, abdomen, bowel, vessels.

Kidneys at T12-L3, aortic bifurcation at L4, domes of the diaphragm at T9-T10, liver on the patient's right (-x).
"""

import numpy as np
from numpy.typing import NDArray

from analysis.simulation.organs import Body, Tissue, TissueMap, paint_ellipsoid, paint_rod, paint_tube
from analysis.simulation.shapes import Bone, Field, Window
from analysis.simulation.spine_curve import centre_at, height_of, position_at


def paint_tissue(tissues: TissueMap, body: Body, rng: np.random.Generator) -> None:
    """Fill a tissue map from the outside inwards."""
    _paint_wall(tissues, body)
    _paint_back_muscles(tissues, body)
    _paint_chest(tissues, body)
    _paint_upper_abdomen(tissues, body)
    _paint_bowel(tissues, body, rng)
    _paint_retroperitoneum(tissues, body)
    _paint_vessels(tissues, body)
    if body.build.arms == "down":
        _paint_arms(tissues, body)


def _paint_wall(tissues: TissueMap, body: Body) -> None:
    """Skin, subcutaneous fat, muscle of the wall, and fat as the bed of all abdominal organs."""
    coordinates = tissues.grid.coordinates(tissues.grid.whole)
    outline, target = body.outline(coordinates), tissues.tissue
    x, y, z = coordinates
    target[outline < 0] = Tissue.SKIN
    target[outline < -2.0] = Tissue.FAT
    muscle = outline + body.build.fat_mm * (0.9 - 0.25 * np.clip((-30 - y) / 60, 0, 1))
    target[np.broadcast_to(muscle < 0, target.shape)] = Tissue.MUSCLE
    position = position_at(body.spine, z)
    hips = np.clip(position - 16.8, 0, 1)
    thick = 14.0 + 16.0 * hips * np.clip((y + 90) / 50, 0, 1) + 10 * np.clip(3.5 - position, 0, 1)
    spine_y = centre_at(body.spine, z, 1)
    inner = np.maximum(muscle + thick, y - spine_y - 18 - 20 * hips - 0.3 * np.clip(np.abs(x) - 60, 0, 60))
    inner = np.where(position < 13, np.maximum(inner, body.chest.distance(coordinates) + 5), inner)
    target[np.broadcast_to((inner < 0) & (position > 9.0), target.shape)] = Tissue.VISCERAL_FAT


def _paint_back_muscles(tissues: TissueMap, body: Body) -> None:
    """Erector spinae and multifidus beside the spinous processes in a bed of fat, quadratus lumborum."""
    x, y, z = tissues.grid.coordinates(tissues.grid.whole)
    depth, position = y - centre_at(body.spine, z, 1), position_at(body.spine, z)
    lumbar = np.clip((position - 9.0) / 2.5, 0, 1) * np.clip((19.8 - position) / 1.5, 0, 1)
    bed = (depth > 15) & (np.abs(x) < lumbar * (84 * body.build.size + 0.8 * (depth - 20)))
    tissues.tissue[bed & (tissues.tissue == Tissue.MUSCLE)] = Tissue.FAT
    for side in (-1.0, 1.0):
        path = [body.at(p, side * x, y) for p, x, y in
                ((2, 20, 36), (6, 24, 42), (10, 30, 47), (13, 38, 43), (15, 40, 42), (17, 38, 45), (18.6, 30, 44),
                 (20, 18, 44))]
        paint_tube(tissues, Tissue.PARASPINAL, path, [11, 12, 15, 24, 26, 25, 18, 6], (1.5, 1.0, 1.0))
        lumborum = [body.at(p, side * x, 26) for p, x in ((12.6, 50), (14.5, 66), (16.6, 82))]
        paint_tube(tissues, Tissue.MUSCLE, lumborum, [6, 9, 8], (2.0, 1.0, 1.0))


def _paint_chest(tissues: TissueMap, body: Body) -> None:
    """Lungs above the domes of the diaphragm, mediastinum, heart."""
    grid, target = tissues.grid, tissues.tissue
    top, bottom = (float(height_of(body.spine, p)) for p in (0.6, 13.5))
    window = grid.window(np.array([-180.0, -220, bottom]), np.array([180.0, 120, top]))
    if window is None:
        return
    coordinates = grid.coordinates(window)
    x, y, z = coordinates
    cage = body.chest.distance(coordinates)
    view = target[window]
    spine_y = centre_at(body.spine, z, 1)
    wall = body.outline(coordinates) + body.build.fat_mm + 9.0
    view[(cage < -5) & (wall < 0) & (view == Tissue.MUSCLE) & (y - spine_y < 20)] = Tissue.VISCERAL_FAT
    mediastinum = np.interp(y - spine_y, [-140, -100, -50, -25, 10, 45], [4.0, 18, 30, 26, 27, 40]).astype(np.float32)
    lung = (cage < -7) & (wall < 0) & (np.abs(x) > mediastinum) & (z > dome_height(body, x, y))
    view[np.broadcast_to(lung, view.shape)] = Tissue.LUNG
    paint_ellipsoid(tissues, Tissue.HEART, body.at(8.3, 24, -82), (50, 42, 58), (0.6, -0.3, -0.7))
    paint_tube(tissues, Tissue.BOWEL_GAS, [body.at(p, 0, -30) for p in (0, 2.5, 4.6)], [8, 8, 8])
    for side in (-1.0, 1.0):
        paint_tube(tissues, Tissue.BOWEL_GAS, [body.at(4.6, 0, -30), body.at(5.8, side * 32, -34)], [6, 5])
    paint_tube(tissues, Tissue.MUSCLE, [body.at(p, 4, -22) for p in (0, 5, 9.5)], [6, 6, 6])


def dome_height(body: Body, x: Field, y: Field) -> Field:
    """Patient z of the diaphragm: a dome on each side, the right one higher, low along the ribs and the back."""
    level = float(height_of(body.spine, 9.3))
    centre_y = -55.0 * body.build.size
    right = np.where(x < 0, np.float32(0.0), np.float32(-9.0))
    across = ((np.abs(x) - 62 * body.build.size) / (78 * body.build.size)) ** 2
    along = ((y - centre_y) / (92 * body.build.size)) ** 2
    return np.asarray(level + right - 62 * np.minimum(across + along, 1.75) ** 1.25, dtype=np.float32)


def _cavity(tissues: TissueMap, body: Body, low: float, high: float) -> (
        tuple[Window, Field, tuple[Field, Field, Field]] | None):
    """Window between two levels and the distance to the inside of the abdominal wall."""
    bottom, top = float(height_of(body.spine, high)), float(height_of(body.spine, low))
    window = tissues.grid.window(np.array([-200.0, -240, bottom]), np.array([200.0, 120, top]))
    if window is None:
        return None
    coordinates = tissues.grid.coordinates(window)
    wall = body.outline(coordinates) + body.build.fat_mm + 16.0
    position = position_at(body.spine, coordinates[2])
    cage = body.chest.distance(coordinates) + 9.0
    return window, np.where(position < 13.2, np.maximum(wall, cage), wall).astype(np.float32), coordinates


def _paint_upper_abdomen(tissues: TissueMap, body: Body) -> None:
    """Liver, spleen, stomach, gall bladder, pancreas."""
    found = _cavity(tissues, body, 8.5, 15.5)
    if found is not None:
        window, wall, (x, y, z) = found
        view = tissues.tissue[window]
        size = body.build.size
        spine_y = centre_at(body.spine, z, 1)
        low = float(height_of(body.spine, 14.4))
        right = np.clip((x + 105 * size) / (190 * size), 0, 1.2)
        floor = low + 130 * size * right**1.6 + 14 * np.sin((y + 60) / 34) + np.clip(y + 10, 0, 60) * 0.25
        edge = np.interp(y - spine_y, [-130, -80, -45, -12, 30], [62.0, 46, -4, -30, -44]) * size
        edge = edge - 0.12 * np.abs(z - low - 95)
        liver = (wall < -1) & (z < dome_height(body, x, y) - 3) & (z > floor) & (x < edge) & (y - spine_y < 38)
        view[np.broadcast_to(liver, view.shape)] = Tissue.LIVER
        spleen = ((x - 104 * size) / (30 * size)) ** 2 + ((y - 2) / (44 * size)) ** 2 + (
            (z - float(height_of(body.spine, 11.9))) / (50 * size)) ** 2 < 1
        below = (wall < -1) & (z < dome_height(body, x, y) - 3)
        view[np.broadcast_to(spleen & below, view.shape)] = Tissue.SPLEEN
        stomach = ((x - 62 * size) / (38 * size)) ** 2 + ((y + 62) / (40 * size)) ** 2 + (
            (z - float(height_of(body.spine, 11.9))) / (58 * size)) ** 2
        view[np.broadcast_to((stomach < 1) & below, view.shape)] = Tissue.STOMACH
        view[np.broadcast_to((stomach < 0.72) & below & (y < -82), view.shape)] = Tissue.BOWEL_GAS
    paint_ellipsoid(tissues, Tissue.GALLBLADDER, body.at(13.6, -62, -78), (15, 15, 30), (-0.3, -0.6, -0.7))
    path = ((13.9, -34, -48), (13.2, -8, -62), (12.9, 30, -56), (12.4, 72, -28))
    paint_tube(tissues, Tissue.PANCREAS, [body.at(p, x, y) for p, x, y in path], [13, 9, 9, 8])


def _paint_bowel(tissues: TissueMap, body: Body, rng: np.random.Generator) -> None:
    """Small-bowel loops and the frame of the colon, only where fat lies."""
    gas = body.build.bowel_gas
    for _ in range(26):
        start = np.array(body.at(rng.uniform(14.2, 18.6), rng.uniform(-75, 75), rng.uniform(-95, -48)))
        loop = [start]
        for _ in range(4):
            loop.append(loop[-1] + rng.normal(0, 1, 3) * (24, 14, 16))
        radius = rng.uniform(9, 14)
        for a, b in zip(loop[:-1], loop[1:], strict=True):
            _loop(tissues, (a, b), radius, Tissue.BOWEL_GAS if rng.random() < 0.5 * gas else Tissue.BOWEL)
    frame = ((18.2, -102, -40), (16, -106, -28), (14.2, -100, -30), (14.6, -40, -92), (14.6, 30, -96), (13, 92, -50),
             (15, 112, -8), (17, 110, -22), (18.6, 84, -42), (20, 20, -20))
    points = [np.array(body.at(*p)) for p in frame]
    for a, b in zip(points[:-1], points[1:], strict=True):
        steps = np.linspace(0, 1, 5)
        for s, t in zip(steps[:-1], steps[1:], strict=True):
            content = Tissue.BOWEL_GAS if rng.random() < 1.6 * gas else Tissue.STOOL
            _loop(tissues, (a + (b - a) * s, a + (b - a) * t), rng.uniform(15, 22), content)


def _loop(tissues: TissueMap, ends: tuple[NDArray[np.float64], NDArray[np.float64]], radius_mm: float,
          content: Tissue) -> None:
    """One piece of bowel with a 2.5-mm wall."""
    start, end = (tuple(float(v) for v in e) for e in ends)
    free = (Tissue.VISCERAL_FAT, Tissue.BOWEL)
    paint_rod(tissues, Tissue.BOWEL, Bone(start, end, radius_mm, radius_mm), free)  # type: ignore[arg-type]
    inner = radius_mm - 2.5
    paint_rod(tissues, content, Bone(start, end, inner, inner), (Tissue.BOWEL,))  # type: ignore[arg-type]


def _paint_retroperitoneum(tissues: TissueMap, body: Body) -> None:
    """Kidneys in their fat, psoas beside the lumbar bodies, bladder."""
    for side, level in ((1.0, 13.35), (-1.0, 13.75)):
        centre = body.at(level, side * 62, 8)
        lean = (side * 0.28, -0.12, -1.0)
        paint_ellipsoid(tissues, Tissue.VISCERAL_FAT, centre, (36, 32, 66), lean)
        paint_ellipsoid(tissues, Tissue.KIDNEY, centre, (27, 25, 54), lean)
        inner = (centre[0] - side * 14, centre[1] - 5, centre[2])
        paint_ellipsoid(tissues, Tissue.VISCERAL_FAT, inner, (13, 9, 24), lean)
        psoas = [body.at(p, side * x, y) for p, x, y in
                 ((12.6, 25, 8), (13.6, 30, 9), (14.8, 37, 8), (16, 43, 2), (17, 48, -9), (18.4, 56, -38),
                  (20.5, 78, -72))]
        paint_tube(tissues, Tissue.MUSCLE, psoas, [5, 10, 15, 19, 21, 19, 16], (0.95, 1.1, 1.0))
        iliacus = [body.at(p, side * x, y) for p, x, y in ((17.4, 88, -8), (19, 84, -38), (20.5, 84, -64))]
        paint_tube(tissues, Tissue.MUSCLE, iliacus, [8, 16, 14], (1.2, 1.2, 1.0))
    paint_ellipsoid(tissues, Tissue.BLADDER, body.at(21.2, 0, -72), (36, 28, 34))


def _paint_vessels(tissues: TissueMap, body: Body) -> None:
    """Aorta in front and to the left, vena cava to the right, their branches at renal and iliac level."""
    aorta = [body.at(p, x, y) for p, x, y in
             ((8, -22, -88), (6.5, -24, -84), (5, -18, -76), (4.1, 2, -58), (4.3, 18, -32), (6, 23, -16), (9, 20, -24),
              (11, 12, -30), (12.5, 7, -33), (14, 9, -34), (16.2, 6, -34))]
    paint_tube(tissues, Tissue.AORTA, aorta, [16, 16, 15, 14, 13, 12.5, 12, 11.5, 11, 10, 9])
    cava = [body.at(p, x, y) for p, x, y in
            ((9.2, -26, -58), (11, -24, -44), (12.5, -22, -36), (14, -20, -33), (16.7, -17, -31))]
    paint_tube(tissues, Tissue.VEIN, cava, [12, 12, 11, 10, 10], (1.15, 0.95, 1.0))
    paint_tube(tissues, Tissue.AORTA, [body.at(13.1, 6, -42), body.at(13.5, 5, -58), body.at(16, 2, -66)], [4.5, 4, 3])
    for side in (-1.0, 1.0):
        kidney = body.at(13.4 - 0.1 * side, side * 44, -6)
        cava_end = body.at(13.3, -14, -34) if side < 0 else body.at(13.2, -14, -48)
        paint_tube(tissues, Tissue.VEIN, [cava_end, kidney], [5, 4])
        iliac = [body.at(p, side * x, y) for p, x, y in
                 ((16.2, 4, -34), (17.3, 24, -42), (18.6, 44, -52), (20.5, 72, -86))]
        paint_tube(tissues, Tissue.AORTA, iliac, [6.5, 6, 5.5, 5])
        veins = [body.at(p, side * x - 6, y) for p, x, y in
                 ((16.7, 8, -30), (17.6, 26, -34), (18.8, 44, -40), (20.5, 68, -76))]
        paint_tube(tissues, Tissue.VEIN, veins, [8, 7.5, 7, 7])


def _paint_arms(tissues: TissueMap, body: Body) -> None:
    """Arms beside the trunk with one thick bone each."""
    for side in (-1.0, 1.0):
        reach = 212.0 * body.build.size + body.build.fat_mm
        top, bottom = ((side * reach * s, -20.0, float(height_of(body.spine, p)))
                       for s, p in ((0.95, 1.5), (1.0, 22.0)))
        for tissue, radius in ((Tissue.SKIN, 46), (Tissue.FAT, 44), (Tissue.MUSCLE, 38), (Tissue.BONE, 11)):
            paint_rod(tissues, tissue, Bone(top, bottom, radius * 1.0, radius * 0.85))
