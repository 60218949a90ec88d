/* The camera: a stream in the page's video element. */

const REASONS = {
  NotAllowedError: "The camera is blocked. Allow this page to use it in the browser's settings, then try again.",
  NotFoundError: "This device has no camera. Choose a photo instead.",
  NotReadableError: "Another program is using the camera. Close it, then try again.",
};

export class Camera {
  #video;
  #stream = null;
  #facing = "environment";

  constructor(video) {
    this.#video = video;
  }

  /** Start the stream; throw an Error whose text says what to do. */
  async start() {
    if (!navigator.mediaDevices?.getUserMedia) {
      throw new Error("The camera needs a secure page. Open it over https, or on localhost.");
    }
    this.stop();
    try {
      const wanted = { facingMode: this.#facing, width: { ideal: 1280 }, height: { ideal: 960 } };
      this.#stream = await navigator.mediaDevices.getUserMedia({ video: wanted, audio: false });
    } catch (error) {
      throw new Error(REASONS[error.name] ?? `The camera cannot be used (${error.name}). Choose a photo instead.`);
    }
    const facing = this.#stream.getVideoTracks()[0].getSettings().facingMode;
    this.#video.classList.toggle("mirrored", facing !== "environment");
    this.#video.srcObject = this.#stream;
    await this.#video.play();
  }

  /** Switch between the cameras at the front and at the back. */
  turn() {
    this.#facing = this.#facing === "user" ? "environment" : "user";
    return this.start();
  }

  stop() {
    for (const track of this.#stream?.getTracks() ?? []) track.stop();
    this.#stream = null;
    this.#video.srcObject = null;
  }

  /** Return the current frame as an ImageBitmap; null before the first one. */
  frame() {
    return this.#stream && this.#video.videoWidth ? createImageBitmap(this.#video) : null;
  }

  /** Return the current frame as a PNG file, which loses nothing. */
  async photo() {
    const canvas = new OffscreenCanvas(this.#video.videoWidth, this.#video.videoHeight);
    canvas.getContext("2d").drawImage(this.#video, 0, 0);
    return new File([await canvas.convertToBlob()], "Photo", { type: "image/png" });
  }

  /** Return the number of cameras. */
  static async count() {
    const devices = (await navigator.mediaDevices?.enumerateDevices?.()) ?? [];
    return devices.filter(({ kind }) => kind === "videoinput").length;
  }
}
