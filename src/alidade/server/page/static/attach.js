// A button that sends an image to this server, to search for tiles that look like it.
export default {
  template: `
    <span class="al-attach">
      <button type="button" title="Search with an image (GeoTIFF, PNG or JPEG)" aria-label="Search with an image"
        :disabled="busy" @click="$refs.file.click()"><i class="material-icons">{{ busy ? 'hourglass_top' : 'image_search' }}</i></button>
      <input ref="file" type="file" accept=".tif,.tiff,.png,.jpg,.jpeg,image/tiff,image/png,image/jpeg" hidden
        data-upload @change="send">
    </span>`,
  data: () => ({ busy: false }),
  methods: {
    async send() {
      const file = this.$refs.file.files[0];
      if (!file) return;
      this.busy = true;
      try {
        const answer = await fetch(`${window.path_prefix || ""}/api/upload`, {
          method: "POST",
          headers: { "content-type": "application/octet-stream" },
          body: file,
        });
        const told = await answer.json();
        if (answer.ok) this.$emit("sent", { token: told.token, name: file.name });
        else this.$emit("failed", { message: told.what ? `${told.what}: got ${told.got}, expected ${told.expected}. ${told.next_step}` : `The server answered ${answer.status}.` });
      } catch (error) {
        this.$emit("failed", { message: "The image could not be sent: the server cannot be reached." });
      } finally {
        this.busy = false;
        this.$refs.file.value = "";
      }
    },
  },
};
