// Shows an image as a model sees it. The worker fits it for the answer, by
// dist_net/images/fitting.py; here the same part of it is drawn in as many pixels.

const PIXELATED_UP_TO = 64;

/** Draws an image file on a canvas as the model takes it; false if that is not known here. */
export async function drawAsSeen(canvas, image, { input_shape: shape, fitting }) {
  const bitmap = await createImageBitmap(image).catch(() => null);
  const [height, width, channels = 1] = shape ?? [];
  const place = bitmap && placeOf[fitting]?.(bitmap.width, bitmap.height, width, height);
  if (!place) return false;
  Object.assign(canvas, { width, height });
  canvas.classList.toggle("pixelated", Math.max(width, height) <= PIXELATED_UP_TO);
  const context = canvas.getContext("2d", { willReadFrequently: channels !== 3 });
  context.fillStyle = fitting === "letterbox" ? "#808080" : "#000";
  context.fillRect(0, 0, width, height);
  context.fillStyle = "#fff";  // behind what is transparent
  context.fillRect(...place.to);
  // Darknet's letterbox does not antialias.
  context.imageSmoothingQuality = fitting === "letterbox" ? "low" : "high";
  context.drawImage(bitmap, ...place.from, ...place.to);
  bitmap.close();
  if (channels !== 3) makeGrey(context, width, height);
  return true;
}

/** By fitting: the part of the image that is taken, and where it goes; x, y, width, height. */
const placeOf = {
  letterbox: (w, h, width, height) => width / w < height / h
    ? inTheMiddle(w, h, width, height, width, Math.floor(h * width / w))
    : inTheMiddle(w, h, width, height, Math.floor(w * height / h), height),
  pad(w, h, width, height) {
    const scale = Math.min(width / w, height / h);
    return inTheMiddle(w, h, width, height, Math.round(w * scale), Math.round(h * scale));
  },
  crop(w, h, width, height) {
    const scale = Math.max(width / w, height / h);
    return middleOf(w, h, width, height, Math.round(width / scale), Math.round(height / scale));
  },
  imagenet: (w, h, width, height) => w * height > h * width
    ? middleOf(w, h, width, height, Math.floor(7 * h * width / (8 * height)), Math.floor(7 * h / 8))
    : middleOf(w, h, width, height, Math.floor(7 * w / 8), Math.floor(7 * w * height / (8 * width))),
  stretch: (w, h, width, height) => ({ from: [0, 0, w, h], to: [0, 0, width, height] }),
  exact: (w, h, width, height) =>
    w === width && h === height ? placeOf.stretch(w, h, width, height) : null,
};

/** The whole image, in so many pixels, with a border around it. */
function inTheMiddle(w, h, width, height, newWidth, newHeight) {
  const [across, down] = [Math.max(1, newWidth), Math.max(1, newHeight)];
  const [left, top] = [Math.floor((width - across) / 2), Math.floor((height - down) / 2)];
  return { from: [0, 0, w, h], to: [left, top, across, down] };
}

/** So many pixels of the image. */
function middleOf(w, h, width, height, keptWidth, keptHeight) {
  const across = Math.min(Math.max(1, keptWidth), w);
  const down = Math.min(Math.max(1, keptHeight), h);
  const [left, top] = [Math.floor((w - across) / 2), Math.floor((h - down) / 2)];
  return { from: [left, top, across, down], to: [0, 0, width, height] };
}

function makeGrey(context, width, height) {
  const image = context.getImageData(0, 0, width, height);
  for (let i = 0; i < image.data.length; i += 4) {
    const [red, green, blue] = image.data.subarray(i, i + 3);
    image.data.fill(Math.round(0.299 * red + 0.587 * green + 0.114 * blue), i, i + 3);
  }
  context.putImageData(image, 0, 0);
}
