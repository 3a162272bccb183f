// <collamo-conformer data-mol="…">: a mol block in 3D, by 3Dmol.js, which is fetched once it is needed.
(() => {
  const place = new URL(".", document.currentScript?.src ?? new URL("collamo/", location.href));
  let library;

  function fetched() {
    library ??= new Promise((resolve, reject) => {
      const script = document.createElement("script");
      script.src = new URL("3Dmol-min.js", place);
      script.onload = () => resolve(window.$3Dmol);
      script.onerror = () => reject(new Error("3Dmol.js did not load"));
      document.head.append(script);
    });
    return library;
  }

  const TURNS = {ArrowLeft: [-15, "y"], ArrowRight: [15, "y"], ArrowUp: [-15, "x"], ArrowDown: [15, "x"]};

  class Conformer extends HTMLElement {
    static observedAttributes = ["data-mol"];

    connectedCallback() {
      this.addEventListener("keydown", (event) => {
        if (!this.viewer || !(event.key in TURNS)) return;
        this.viewer.rotate(...TURNS[event.key]);
        this.dataset.turned = event.key;
        event.preventDefault();
      });
      this.show();
    }

    attributeChangedCallback() {
      if (this.isConnected) this.show();
    }

    async show() {
      try {
        const library = await fetched();
        if (!this.isConnected) return;
        this.viewer ??= library.createViewer(this, {backgroundColor: "white"});
        this.viewer.removeAllModels();
        this.viewer.addModel(this.dataset.mol, "sdf");
        this.viewer.setStyle({}, {stick: {radius: 0.14}, sphere: {scale: 0.24}});
        this.viewer.zoomTo();
        this.viewer.render();
        this.dataset.atoms = this.viewer.getModel().selectedAtoms({}).length;
      } catch (error) {
        this.viewer = undefined;
        this.textContent = `no picture in 3D: ${error.message} (it needs WebGL)`;
      }
    }
  }

  if (!customElements.get("collamo-conformer")) customElements.define("collamo-conformer", Conformer);
})();
