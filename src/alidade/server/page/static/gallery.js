// The gallery: thousands of chips of which only those in sight exist, and the keys that judge them.
const GAP = 8;
const WIDEST = 176; // a chip is at most this wide
const CAPTION = 40;
const OVERSCAN = 2;

export default {
  template: `
    <div class="al-gallery" ref="box" tabindex="0" role="listbox" :aria-label="label" data-gallery
      :aria-activedescendant="rows.length ? 'chip-' + at : null"
      @scroll.passive="measure" @keydown="onKey" @focus="focused = true" @blur="focused = false">
      <div class="al-gallery-all" :style="{ height: total + 'px' }">
        <div v-for="cell in cells" :key="cell.row.id" :id="'chip-' + cell.index" class="al-chip" role="option"
          :class="{ current: cell.index === at, ring: cell.index === at && focused, yes: marks[cell.row.id] === 'yes',
            no: marks[cell.row.id] === 'no', more: positive.has(cell.row.id), less: negative.has(cell.row.id) }"
          :aria-selected="cell.index === at" :aria-label="describe(cell.row)" :data-id="cell.row.id"
          :style="{ width: side + 'px', transform: 'translate(' + cell.x + 'px,' + cell.y + 'px)' }"
          @click="pick(cell.index, 'look')" @dblclick="pick(cell.index, 'there')">
          <div class="al-chip-picture" :style="{ height: side + 'px' }">
            <img :src="url(cell.row.id)" alt="" draggable="false" decoding="async">
            <span v-if="marks[cell.row.id] === 'yes'" class="al-badge yes"><i class="material-icons">check</i></span>
            <span v-else-if="marks[cell.row.id] === 'no'" class="al-badge no"><i class="material-icons">close</i></span>
            <span v-if="cell.row.new" class="al-new">new</span>
            <span class="al-chip-buttons">
              <button type="button" tabindex="-1" data-do="more" title="More like this (+)" aria-label="More like this"
                :aria-pressed="positive.has(cell.row.id)" @click.stop="example(cell.row.id, 1)"><i class="material-icons">add</i></button>
              <button type="button" tabindex="-1" data-do="less" title="Not like this (−)" aria-label="Not like this"
                :aria-pressed="negative.has(cell.row.id)" @click.stop="example(cell.row.id, -1)"><i class="material-icons">remove</i></button>
              <button type="button" tabindex="-1" data-do="show" title="Show on the map (Enter)" aria-label="Show on the map"
                :disabled="!cell.row.box" @click.stop="pick(cell.index, 'there')"><i class="material-icons">place</i></button>
            </span>
          </div>
          <div class="al-chip-text">
            <div><span class="al-score">{{ cell.row.score === null ? '' : cell.row.score.toFixed(3) }}</span>
              <span class="al-date">{{ cell.row.date || 'no date' }}</span></div>
            <div><span class="al-sensor" :title="cell.row.name">{{ cell.row.sensor }}</span>
              <span class="al-gsd">{{ cell.row.gsd }}</span></div>
          </div>
        </div>
      </div>
    </div>`,
  props: { label: String },
  data: () => ({
    rows: [], visible: 0, at: 0, focused: false, top: 0, width: 300, height: 600,
    marks: {}, positive: new Set(), negative: new Set(),
  }),
  computed: {
    columns() {
      return Math.max(1, Math.ceil((this.width + GAP) / (WIDEST + GAP)));
    },
    side() {
      return Math.floor((this.width - (this.columns - 1) * GAP) / this.columns);
    },
    pitch() {
      return this.side + CAPTION + GAP;
    },
    total() {
      return Math.ceil(this.visible / this.columns) * this.pitch;
    },
    cells() {
      if (this.side <= 0) return []; // not laid out yet, or hidden
      const first = Math.max(0, Math.floor(this.top / this.pitch) - OVERSCAN);
      const last = Math.ceil((this.top + this.height) / this.pitch) + OVERSCAN;
      const found = [];
      for (let i = first * this.columns; i < Math.min(this.visible, last * this.columns); i++) {
        found.push({
          index: i, row: this.rows[i],
          x: (i % this.columns) * (this.side + GAP), y: Math.floor(i / this.columns) * this.pitch,
        });
      }
      return found;
    },
  },
  mounted() {
    this.observer = new ResizeObserver(this.measure);
    this.observer.observe(this.$refs.box);
    document.addEventListener("keydown", this.onAnyKey);
    this.measure();
  },
  unmounted() {
    this.observer.disconnect();
    document.removeEventListener("keydown", this.onAnyKey);
  },
  methods: {
    // ---- what Python calls
    setRows(rows, visible, marks) {
      this.rows = Object.freeze(rows);
      this.visible = visible;
      this.marks = marks;
      this.at = 0;
      this.$refs.box.scrollTop = 0;
      this.$nextTick(this.measure);
    },
    trim(visible) {
      this.visible = visible;
      this.at = Math.max(0, Math.min(this.at, visible - 1));
      this.$nextTick(this.measure);
    },
    setMarks(marks) {
      this.marks = marks;
    },
    setExamples(positive, negative) {
      this.positive = new Set(positive);
      this.negative = new Set(negative);
    },
    select(id) {
      const index = this.rows.findIndex((row) => row.id === id);
      if (index >= 0 && index < this.visible) this.go(index, "");
    },

    measure() {
      const box = this.$refs.box;
      if (!box) return;
      const style = getComputedStyle(box);
      this.top = box.scrollTop;
      this.height = box.clientHeight;
      this.width = box.clientWidth - parseFloat(style.paddingLeft) - parseFloat(style.paddingRight);
    },
    url(id) {
      const size = Math.min(512, Math.ceil((this.side * Math.min(2, window.devicePixelRatio || 1)) / 64) * 64);
      return `${window.path_prefix || ""}/api/thumbnail/${encodeURIComponent(id)}.png?size=${size}`;
    },
    describe(row) {
      const mark = this.marks[row.id] === "yes" ? "accepted, " : this.marks[row.id] === "no" ? "rejected, " : "";
      const score = row.score === null ? "" : `score ${row.score.toFixed(3)}, `;
      return `${mark}${score}${row.date || "no date"}, ${row.sensor}, ${row.gsd}, ${row.name}`;
    },
    pick(index, go) {
      this.$refs.box.focus({ preventScroll: true });
      this.go(index, go);
    },
    go(index, show) {
      this.at = Math.max(0, Math.min(index, this.visible - 1));
      const box = this.$refs.box;
      const y = Math.floor(this.at / this.columns) * this.pitch;
      if (y < box.scrollTop) box.scrollTop = y;
      else if (y + this.pitch > box.scrollTop + box.clientHeight - 16) box.scrollTop = y + this.pitch - box.clientHeight + 16;
      const row = this.rows[this.at];
      if (row) this.$emit("current", { id: row.id, go: show });
    },
    mark(mark) {
      const row = this.rows[this.at];
      if (!row) return;
      const same = this.marks[row.id] === mark;
      this.$emit("mark", { id: row.id, mark: same ? null : mark });
      if (!same) this.go(this.at + 1, "");
    },
    example(id, sign) {
      const held = (sign > 0 ? this.positive : this.negative).has(id);
      this.$emit("example", { id, sign: held ? 0 : sign });
    },
    onKey(event) {
      if (event.ctrlKey || event.metaKey || event.altKey || !this.visible) return;
      const page = Math.max(1, Math.floor(this.height / this.pitch)) * this.columns;
      const row = this.rows[this.at];
      const does = {
        y: () => this.mark("yes"), n: () => this.mark("no"), " ": () => this.go(this.at + 1, ""),
        ArrowRight: () => this.go(this.at + 1, ""), ArrowLeft: () => this.go(this.at - 1, ""),
        ArrowDown: () => this.go(this.at + this.columns, ""), ArrowUp: () => this.go(this.at - this.columns, ""),
        PageDown: () => this.go(this.at + page, ""), PageUp: () => this.go(this.at - page, ""),
        Home: () => this.go(0, ""), End: () => this.go(this.visible - 1, ""),
        Enter: () => this.go(this.at, "there"), "+": () => this.example(row.id, 1), "-": () => this.example(row.id, -1),
      }[event.key.length === 1 ? event.key.toLowerCase() : event.key];
      if (!does) return;
      event.preventDefault();
      event.stopPropagation();
      does();
    },
    // y, n and space also work when nothing is focused
    onAnyKey(event) {
      const free = document.activeElement === document.body || document.activeElement === null;
      if (free && ["y", "n", " ", "+", "-"].includes(event.key.toLowerCase())) {
        this.$refs.box.focus({ preventScroll: true });
        this.onKey(event);
      }
    },
  },
};
