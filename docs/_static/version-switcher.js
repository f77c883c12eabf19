// Fill the menu of versions from the versions.js beside this version's folder. Both
// scripts are deferred, so that they run in order; without the first, nothing is shown.
(() => {
  const label = document.querySelector(".version-switcher");
  const versions = window.DOCUMENTED_VERSIONS ?? [];
  if (!label || !versions.length) return;

  const root = new URL(label.dataset.root, document.baseURI);
  const current = root.pathname.split("/").at(-2);
  const select = label.querySelector("select");
  for (const version of versions) {
    const isCurrent = version === current;
    select.add(new Option(version, version, isCurrent, isCurrent));
  }
  if (!versions.includes(current)) select.selectedIndex = -1;
  label.hidden = false;

  select.addEventListener("change", async () => {
    const other = new URL(`../${select.value}/`, root);
    const page = new URL(location.pathname.slice(root.pathname.length), other);
    const exists = await fetch(page, { method: "HEAD" }).then(
      (response) => response.ok,
      () => false,
    );
    location.assign(exists ? page : new URL("index.html", other));
  });
})();
