// Online, the network answers. Offline, the browser's copy of this page does (see `keep` in
// search_page.js).
self.addEventListener("install", () => self.skipWaiting());
self.addEventListener("activate", (event) => event.waitUntil(self.clients.claim()));
self.addEventListener("fetch", (event) => {
  const { request } = event;
  if (request.method !== "GET") return;
  const asked = request.mode === "navigate" ? new URL("./", self.location.href).href : request;
  event.respondWith(
    fetch(request).catch(async (error) => {
      const kept = await caches.match(asked, { ignoreSearch: true });
      if (!kept) throw error;
      return kept;
    }),
  );
});
