// The map: land outline, scenes, similarity, results, and the drawing of an area. Everything comes from this server.
import { leaflet as L } from "nicegui-leaflet";

const SMALLEST_SHAPE = 9; // pixels: what is smaller is drawn as a dot
const SMALLEST_SCENE = 24;
const MOST_SCENES = 40; // tile layers at once
const CLOSE = 12; // pixels: a click this near to the first corner closes a polygon

// ring of [lon, lat] to Leaflet's [lat, lng]; longitudes run on over the antimeridian instead of jumping back
const latLngs = (ring, origin) =>
  ring.map(([lon, lat]) => [lat, lon - origin > 180 ? lon - 360 : lon - origin < -180 ? lon + 360 : lon]);

const boxBounds = ([w, s, e, n]) => L.latLngBounds([s, w], [n, e < w ? e + 360 : e]);

export default {
  template: `
    <div class="al-map-frame">
      <div ref="map" class="al-map" role="application" aria-label="Map of scenes and results"></div>
      <div class="al-map-tools" role="toolbar" aria-label="Search area">
        <button type="button" title="Draw a box to search in" :aria-pressed="drawing === 'box'"
          data-tool="box" @click="startDraw('box')"><i class="material-icons">crop_free</i><span>Box</span></button>
        <button type="button" title="Draw a polygon to search in" :aria-pressed="drawing === 'polygon'"
          data-tool="polygon" @click="startDraw('polygon')"><i class="material-icons">polyline</i><span>Polygon</span></button>
        <button v-if="area" type="button" title="Search everywhere again" data-tool="clear" @click="clearArea">
          <i class="material-icons">close</i><span>Clear area</span></button>
        <button type="button" title="Show all results, or all scenes" data-tool="fit" @click="fitAll">
          <i class="material-icons">zoom_out_map</i></button>
      </div>
      <div v-if="hint" class="al-map-hint" role="status">{{ hint }}</div>
      <div class="al-map-layers" role="group" aria-label="Layers">
        <label><input type="checkbox" v-model="shown.scenes" @change="applyLayers" data-layer="scenes"> Scenes</label>
        <label :class="{ off: !heatId }"><input type="checkbox" v-model="shown.heat" @change="applyLayers"
          :disabled="!heatId" data-layer="heat"> Similarity</label>
        <label><input type="checkbox" v-model="shown.results" @change="applyLayers" data-layer="results"> Results</label>
      </div>
      <div v-if="heatId && shown.heat" class="al-map-legend" aria-label="Similarity, from less to more">
        <span>less like it</span><i :style="{ background: ramp }"></i><span>more</span>
      </div>
    </div>`,
  props: { resourcePath: String, ramp: String },
  data: () => ({
    drawing: null,
    area: null,
    heatId: null,
    hint: "",
    shown: { scenes: true, heat: false, results: true },
  }),
  async mounted() {
    await this.$nextTick();
    this.prefix = window.path_prefix || "";
    this.scenes = [];
    this.sceneLayers = new Map();
    this.rows = [];
    this.visible = 0;
    this.marks = {};
    this.current = null;
    await this.loadStyle(import.meta.resolve("nicegui-leaflet/leaflet/leaflet.css"));
    this.begin();
  },
  unmounted() {
    this.observer?.disconnect();
    document.removeEventListener("keydown", this.onKey);
    this.map?.remove();
  },
  methods: {
    loadStyle(href) {
      if (document.querySelector(`link[href="${href}"]`)) return Promise.resolve();
      return new Promise((done) => {
        const link = Object.assign(document.createElement("link"), { rel: "stylesheet", href, onload: done, onerror: done });
        document.head.append(link);
      });
    },
    begin() {
      this.map = L.map(this.$refs.map, {
        center: [25, 5],
        zoom: 2,
        minZoom: 1,
        maxZoom: 19,
        zoomSnap: 0.5,
        zoomControl: false,
        attributionControl: false,
        worldCopyJump: true,
        doubleClickZoom: true,
      });
      L.control.zoom({ position: "topright" }).addTo(this.map);
      L.control.scale({ imperial: false, position: "bottomright" }).addTo(this.map);
      for (const [name, z] of [["land", 150], ["grid", 160], ["outlines", 380], ["heat", 390], ["found", 420], ["drawn", 430]]) {
        this.map.createPane(name).style.zIndex = z;
      }
      this.map.getPane("land").style.pointerEvents = "none";
      this.map.getPane("grid").style.pointerEvents = "none";
      this.map.getPane("outlines").style.pointerEvents = "none";
      this.gridLayer = L.layerGroup().addTo(this.map);
      this.outlines = L.layerGroup().addTo(this.map);
      this.found = L.layerGroup().addTo(this.map);
      this.drawn = L.layerGroup().addTo(this.map);
      this.renderers = {
        outlines: L.canvas({ pane: "outlines", padding: 0.3 }),
        found: L.canvas({ pane: "found", padding: 0.3, tolerance: 3 }),
      };
      this.map.on("moveend", this.moved);
      this.map.on("click", this.clicked);
      document.addEventListener("keydown", this.onKey);
      this.observer = new ResizeObserver(() => this.map.invalidateSize({ pan: false }));
      this.observer.observe(this.$refs.map);
      fetch(`${this.prefix}${this.resourcePath}/land.json`)
        .then((answer) => answer.json())
        .then((land) => {
          const style = { pane: "land", interactive: false, className: "al-land", weight: 1, noClip: true };
          for (const shift of [-360, 0, 360]) {
            const shifted = land.coordinates.map((p) => p.map((r) => r.map(([x, y]) => [x + shift, y])));
            L.geoJSON({ type: "MultiPolygon", coordinates: shifted }, { style }).addTo(this.map);
          }
        });
      this.drawGrid();
      this.$emit("ready");
    },

    // ---- what Python calls
    setScenes(scenes) {
      this.scenes = scenes.filter((s) => s.box);
      this.drawScenes();
    },
    setResults(rows, visible, heatId, marks) {
      this.rows = rows;
      this.visible = visible;
      this.marks = marks;
      if (heatId !== this.heatId) {
        this.heatId = heatId;
        this.applyLayers();
      }
      this.current = null;
      this.drawResults();
    },
    trim(visible) {
      this.visible = visible;
      this.drawResults();
    },
    setMarks(marks) {
      this.marks = marks;
      this.drawResults();
    },
    setArea(geometry) {
      this.area = geometry;
      this.drawArea();
    },
    setView(lat, lon, zoom) {
      this.map.setView([lat, lon], zoom, { animate: false });
    },
    showLayers(shown) {
      Object.assign(this.shown, shown);
      this.applyLayers();
    },
    select(id, go) {
      this.current = id;
      const row = this.rows.find((r) => r.id === id);
      const unseen = row && row.box && !(this.map.getBounds().contains(boxBounds(row.box)) && this.pixels(row.box) > 40);
      if (row && row.box && (go === "there" || (go === "look" && unseen))) {
        this.map.flyToBounds(boxBounds(row.box).pad(1.5), { maxZoom: 17, duration: 0.6 });
      }
      this.drawScenes();
      this.drawResults();
    },
    fitAll() {
      const boxes = (this.visible ? this.rows.slice(0, this.visible) : this.scenes).map((r) => r.box).filter(Boolean);
      if (!boxes.length) return;
      const bounds = boxes.map(boxBounds).reduce((all, b) => all.extend(b), L.latLngBounds([]));
      this.map.fitBounds(bounds.pad(0.1), { maxZoom: 15 });
    },

    // ---- layers
    applyLayers() {
      this.heat?.remove();
      this.heat = null;
      if (this.heatId && this.shown.heat) {
        this.heat = L.tileLayer(`${this.prefix}/api/similarity/${this.heatId}/{z}/{x}/{y}.png`, {
          pane: "heat",
          maxZoom: 22,
          opacity: 0.75,
        }).addTo(this.map);
      }
      this.drawScenes();
      this.drawResults();
      this.$emit("layers", { ...this.shown });
    },
    pixels(box) {
      const bounds = boxBounds(box);
      const a = this.map.latLngToContainerPoint(bounds.getSouthWest());
      const b = this.map.latLngToContainerPoint(bounds.getNorthEast());
      return Math.max(Math.abs(b.x - a.x), Math.abs(b.y - a.y));
    },
    // a scene of one place and many dates: the newest on top, unless a result of another one is chosen
    drawScenes() {
      const view = this.map.getBounds().pad(0.1);
      const chosen = this.rows.find((r) => r.id === this.current)?.scene;
      const wanted = new Map();
      const covered = [];
      this.outlines.clearLayers();
      if (this.shown.scenes) {
        // from the top down, the chosen one first: what lies wholly under another need not be drawn
        const order = [...this.scenes].reverse().sort((a, b) => (b.id === chosen) - (a.id === chosen));
        for (const scene of order) {
          const bounds = boxBounds(scene.box);
          if (!view.intersects(bounds)) continue;
          const size = this.pixels(scene.box);
          const look = { renderer: this.renderers.outlines, interactive: false, ...this.colours().scene };
          if (size < SMALLEST_SHAPE) {
            L.circleMarker(bounds.getCenter(), { ...look, radius: 3.5, fillOpacity: 0.9, weight: 1 }).addTo(this.outlines);
          } else {
            L.rectangle(bounds, { ...look, weight: 1, opacity: 0.55, fill: false }).addTo(this.outlines);
          }
          const hidden = covered.some((other) => other.contains(bounds));
          if (size >= SMALLEST_SCENE && wanted.size < MOST_SCENES && !hidden) {
            wanted.set(scene.id, scene);
            covered.push(bounds.pad(0.02));
          }
        }
      }
      for (const [id, layer] of this.sceneLayers) {
        if (!wanted.has(id)) {
          layer.remove();
          this.sceneLayers.delete(id);
        }
      }
      for (const [id, scene] of wanted) {
        const zIndex = id === chosen ? 100000 : 1 + scene.order;
        if (this.sceneLayers.has(id)) {
          this.sceneLayers.get(id).setZIndex(zIndex);
          continue;
        }
        const layer = L.tileLayer(`${this.prefix}/api/scenes/${id}/tiles/{z}/{x}/{y}.png`, {
          bounds: boxBounds(scene.box),
          maxZoom: 22,
          zIndex,
        });
        this.sceneLayers.set(id, layer.addTo(this.map));
      }
    },
    colours() {
      const style = getComputedStyle(this.$el);
      const value = (name) => style.getPropertyValue(name).trim();
      return {
        scene: { color: value("--al-scene"), fillColor: value("--al-scene") },
        result: value("--al-result"),
        halo: value("--al-halo"),
        yes: value("--al-yes"),
        no: value("--al-no"),
      };
    },
    drawResults() {
      this.found.clearLayers();
      if (!this.shown.results) return;
      const look = this.colours();
      const view = this.map.getBounds().pad(0.3);
      const one = (row) => {
        if (!row.box) return;
        const bounds = boxBounds(row.box);
        if (!view.intersects(bounds)) return;
        const here = row.id === this.current;
        const mark = this.marks[row.id];
        const color = here ? look.result : mark === "yes" ? look.yes : mark === "no" ? look.no : look.result;
        const base = { renderer: this.renderers.found, bubblingMouseEvents: false, color };
        let shape;
        if (this.pixels(row.box) < SMALLEST_SHAPE) {
          shape = L.circleMarker(bounds.getCenter(), {
            ...base, color: look.halo, weight: 1.5, radius: here ? 8 : 5, fillColor: color, fillOpacity: 1,
          });
        } else {
          const rings = row.rings.map((ring) => [latLngs(ring, row.box[0])]);
          if (here) L.polygon(rings, { ...base, color: look.halo, weight: 5.5, fill: false, interactive: false }).addTo(this.found);
          shape = L.polygon(rings, { ...base, weight: here ? 3 : 1.5, fillOpacity: 0.001, dashArray: mark === "no" && !here ? "4 4" : null });
        }
        shape.on("click", () => this.$emit("picked", { id: row.id }));
        shape.bindTooltip(`${row.score === null ? "" : row.score.toFixed(3) + " · "}${row.sensor}${row.date ? " · " + row.date : ""}`, { sticky: true });
        shape.addTo(this.found);
      };
      // the best on top
      for (let i = this.visible - 1; i >= 0; i--) if (this.rows[i].id !== this.current) one(this.rows[i]);
      const chosen = this.rows.find((r) => r.id === this.current);
      if (chosen) one(chosen);
    },
    drawGrid() {
      this.gridLayer.clearLayers();
      const bounds = this.map.getBounds();
      const span = bounds.getEast() - bounds.getWest();
      const step = [30, 20, 10, 5, 2, 1, 0.5, 0.2, 0.1, 0.05, 0.02, 0.01, 0.005, 0.002, 0.001].find((s) => span / s >= 5) || 0.001;
      const digits = Math.max(0, -Math.floor(Math.log10(step)));
      const line = (points) =>
        L.polyline(points, { pane: "grid", className: "al-grid", interactive: false, weight: 1 }).addTo(this.gridLayer);
      const name = (at, text, side) =>
        L.marker(at, { pane: "grid", interactive: false, keyboard: false,
          icon: L.divIcon({ className: `al-grid-name al-grid-${side}`, html: text, iconSize: null }) }).addTo(this.gridLayer);
      const tall = Math.min(85, bounds.getNorth()), low = Math.max(-85, bounds.getSouth());
      const corner = this.map.containerPointToLatLng([4, this.map.getSize().y - 4]);
      for (let x = Math.ceil(bounds.getWest() / step) * step; x <= bounds.getEast(); x += step) {
        line([[low, x], [tall, x]]);
        const lon = ((((x + 180) % 360) + 360) % 360) - 180;
        name([corner.lat, x], `${Math.abs(lon).toFixed(digits)}°${Math.abs(lon) < step / 2 ? "" : lon < 0 ? "W" : "E"}`, "x");
      }
      for (let y = Math.ceil(low / step) * step; y <= tall; y += step) {
        line([[y, bounds.getWest()], [y, bounds.getEast()]]);
        name([y, corner.lng], `${Math.abs(y).toFixed(digits)}°${Math.abs(y) < step / 2 ? "" : y < 0 ? "S" : "N"}`, "y");
      }
    },
    moved() {
      this.drawGrid();
      this.drawScenes();
      this.drawResults();
      const at = this.map.getCenter().wrap();
      this.$emit("moved", { lat: +at.lat.toFixed(5), lon: +at.lng.toFixed(5), zoom: this.map.getZoom() });
    },

    // ---- clicks: the tile at a place
    clicked(event) {
      if (this.drawing) return;
      const at = event.latlng;
      const inside = this.scenes.filter((s) => boxBounds(s.box).contains(at) && this.pixels(s.box) >= SMALLEST_SCENE);
      if (!inside.length) {
        const near = this.scenes.find((s) => {
          const p = this.map.latLngToContainerPoint(boxBounds(s.box).getCenter());
          return this.pixels(s.box) < SMALLEST_SCENE && p.distanceTo(event.containerPoint) < 10;
        });
        if (near) this.map.fitBounds(boxBounds(near.box).pad(0.5), { maxZoom: 16 });
        return;
      }
      const scene = inside[inside.length - 1];
      const content = document.createElement("div");
      content.className = "al-popup";
      const title = document.createElement("div");
      title.textContent = [scene.name, scene.sensor, scene.date].filter(Boolean).join(" · ");
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = "Search for tiles like this place";
      button.addEventListener("click", () => {
        this.map.closePopup();
        const p = at.wrap();
        this.$emit("place", { lon: +p.lng.toFixed(6), lat: +p.lat.toFixed(6) });
      });
      content.append(title, button);
      L.popup({ closeButton: false, offset: [0, -2] }).setLatLng(at).setContent(content).openOn(this.map);
    },

    // ---- drawing an area
    startDraw(kind) {
      const again = this.drawing === kind;
      this.stopDraw();
      if (again) return;
      this.drawing = kind;
      this.points = [];
      this.map.closePopup();
      this.map.doubleClickZoom.disable();
      this.$refs.map.classList.add("al-drawing");
      this.hint = kind === "box" ? "Drag from one corner of the box to the other. Esc cancels."
        : "Click the corners; click the first again, or double-click, to finish. Esc cancels.";
      if (kind === "box") {
        this.map.dragging.disable();
        this.map.on("mousedown", this.boxDown);
      } else {
        this.map.on("click", this.corner);
        this.map.on("dblclick", this.closePolygon);
        this.map.on("mousemove", this.rubber);
      }
    },
    stopDraw() {
      if (!this.drawing) return;
      this.drawing = null;
      this.hint = "";
      this.map.off("mousedown", this.boxDown).off("mousemove", this.boxMove).off("mouseup", this.boxUp);
      this.map.off("click", this.corner).off("dblclick", this.closePolygon).off("mousemove", this.rubber);
      this.map.dragging.enable();
      setTimeout(() => this.map.doubleClickZoom.enable(), 50);
      this.$refs.map.classList.remove("al-drawing");
      this.drawArea();
    },
    boxDown(event) {
      this.points = [event.latlng];
      this.map.on("mousemove", this.boxMove).on("mouseup", this.boxUp);
    },
    boxMove(event) {
      this.sketch(L.rectangle(L.latLngBounds(this.points[0], event.latlng)));
    },
    boxUp(event) {
      const b = L.latLngBounds(this.points[0], event.latlng);
      const size = this.map.latLngToContainerPoint(b.getNorthWest()).distanceTo(this.map.latLngToContainerPoint(b.getSouthEast()));
      if (size < 6) return this.stopDraw();
      const wrap = (x) => +((((x + 180) % 360) + 360) % 360 - 180).toFixed(6);
      const wide = b.getEast() - b.getWest() >= 360;
      const box = [wide ? -180 : wrap(b.getWest()), +Math.max(-90, b.getSouth()).toFixed(6),
        wide ? 180 : wrap(b.getEast()), +Math.min(90, b.getNorth()).toFixed(6)];
      this.finish({ type: "Box", coordinates: box });
    },
    corner(event) {
      const first = this.points[0] && this.map.latLngToContainerPoint(this.points[0]);
      if (this.points.length > 2 && first.distanceTo(event.containerPoint) < CLOSE) return this.closePolygon();
      const last = this.points.at(-1);
      // the second click of a double click lands on the corner that the first has set
      if (last && this.map.latLngToContainerPoint(last).distanceTo(event.containerPoint) < 3) return;
      this.points.push(event.latlng);
      this.sketch(L.polyline(this.points));
    },
    rubber(event) {
      if (this.points.length) this.sketch(L.polygon([...this.points, event.latlng]));
    },
    closePolygon() {
      if (this.points.length < 3) return;
      const ring = this.points.map((p) => [+p.lng.toFixed(6), +p.lat.toFixed(6)]);
      this.finish({ type: "Polygon", coordinates: [[...ring, ring[0]]] });
    },
    finish(geometry) {
      this.area = geometry;
      this.stopDraw();
      this.$emit("area", { geometry });
    },
    clearArea() {
      this.stopDraw();
      this.area = null;
      this.drawArea();
      this.$emit("area", { geometry: null });
    },
    sketch(shape) {
      this.drawn.clearLayers();
      shape.setStyle({ pane: "drawn", className: "al-area", interactive: false, weight: 2, fillOpacity: 0.08 });
      shape.options.pane = "drawn";
      shape.addTo(this.drawn);
    },
    drawArea() {
      this.drawn.clearLayers();
      if (!this.area) return;
      if (this.area.type === "Box") this.sketch(L.rectangle(boxBounds(this.area.coordinates)));
      else this.sketch(L.polygon(this.area.coordinates.map((ring) => latLngs(ring, ring[0][0]))));
    },
    onKey(event) {
      if (event.key === "Escape") this.stopDraw();
    },
  },
};
