// A page that is opened as a file may start no worker: the search's runs in a hidden frame of the page instead.
if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    constructor(url) {
      super();
      this.frame = document.createElement("iframe");
      this.frame.hidden = true;
      this.frame.srcdoc = `<script src="${url}"></script>`;
      this.loaded = new Promise((done) => { this.frame.onload = done; });
      document.body.append(this.frame);
    }

    async postMessage(data) {
      await this.loaded;
      const worker = this.frame.contentWindow;
      worker.postMessage = (reply) => this.dispatchEvent(new MessageEvent("message", { data: reply }));
      worker.dispatchEvent(new MessageEvent("message", { data }));
    }
  };
}
