// Segments an image file with a model on TensorFlow Serving, in a browser.
//
//   const table = await (await fetch("dataset_info.json")).json();
//   const { segments } = await segmentImage(file, "http://localhost:8501/v1/models/shapes", table);

/**
 * @param {Blob} photo JPEG or PNG file, such as one of an <input type="file">.
 * @param {string} model URL of the model on the server.
 * @param {object} table Content of the export's assets/dataset_info.json.
 * @returns {Promise<object>} `width` and `height` of the upright image; `ids`, the id of the segment of each pixel, row
 *   by row, 0 where void; `segments`, each with `id`, `name`, `isThing`, `color` of its class, `score`, `area` in pixels
 *   and `box`, [left, top, width, height].
 */
export async function segmentImage(photo, model, table) {
  const bytes = new Uint8Array(await photo.arrayBuffer());
  const b64 = btoa(Array.from(bytes, (byte) => String.fromCharCode(byte)).join(""));
  const response = await fetch(`${model}:predict`, {
    method: "POST",
    body: JSON.stringify({ signature_name: "panoptic_png", instances: [{ b64 }] }),
  });
  const answer = await response.json();
  if (!response.ok) throw new Error(answer.error);
  const [prediction] = answer.predictions;

  const classes = new Map(table.classes.map((row) => [row.id, row]));
  const segments = Array.from({ length: prediction.num_segments }, (_, row) => {
    const { name, is_thing: isThing, color } = classes.get(prediction.segment_class_ids[row]);
    const [id, score, area, box] = ["ids", "scores", "areas", "boxes"].map((key) => prediction[`segment_${key}`][row]);
    return { id, name, isThing, color, score, area, box };
  });
  return { ...(await idsOf(prediction.panoptic_png_bytes.b64)), segments };
}

/** The ids that a PNG has as colors: red + 256 green + 65536 blue. */
async function idsOf(b64) {
  const png = new Blob([Uint8Array.from(atob(b64), (letter) => letter.charCodeAt(0))], { type: "image/png" });
  // The exact values, not those adapted to the screen.
  const bitmap = await createImageBitmap(png, { colorSpaceConversion: "none", premultiplyAlpha: "none" });
  const { width, height } = bitmap;
  const context = new OffscreenCanvas(width, height).getContext("2d");
  context.drawImage(bitmap, 0, 0);
  const { data } = context.getImageData(0, 0, width, height);
  const ids = new Int32Array(width * height);
  for (let pixel = 0; pixel < ids.length; pixel++) {
    ids[pixel] = data[4 * pixel] + 256 * data[4 * pixel + 1] + 65536 * data[4 * pixel + 2];
  }
  return { width, height, ids };
}
