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

  /** Start the stream, of a given camera or of one that faces the wanted way; throw an Error that says what to do. */
  async start(deviceId = undefined) {
    if (!navigator.mediaDevices?.getUserMedia) {
      throw new Error("The camera needs a secure page. Open it over https, or on localhost.");
    }
    this.stop();
    try {
      const which = deviceId ? { deviceId: { exact: deviceId } } : { facingMode: this.#facing };
      const wanted = { ...which, width: { ideal: 1280 }, height: { ideal: 960 } };
      this.#stream = await navigator.mediaDevices.getUserMedia({ video: wanted, audio: false });
    } catch (error) {
      throw new Error(REASONS[error.name] ?? `The camera cannot be used (${error.name}). Choose a photo instead.`);
    }
    this.#video.classList.toggle("mirrored", this.#settings.facingMode !== "environment");
    this.#video.srcObject = this.#stream;
    await this.#video.play();
  }

  /** Switch between the cameras at the front and at the back; to the next one if they do not tell where they are. */
  async turn() {
    const before = this.#settings.deviceId;
    this.#facing = this.#facing === "user" ? "environment" : "user";
    await this.start();
    if (this.#settings.deviceId !== before) return;
    const ids = (await Camera.list()).map(({ deviceId }) => deviceId);
    if (ids.length > 1) await this.start(ids[(ids.indexOf(before) + 1) % ids.length]);
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

  /** Return the cameras. */
  static async list() {
    const devices = (await navigator.mediaDevices?.enumerateDevices?.()) ?? [];
    return devices.filter(({ kind }) => kind === "videoinput");
  }

  get #settings() {
    return this.#stream?.getVideoTracks()[0].getSettings() ?? {};
  }
}
