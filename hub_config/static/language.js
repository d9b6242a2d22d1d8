// Before the first paint: <html lang> from the cookie, else the browser. After it: attributes, the title, and the two buttons.
(() => {
  const page = document.documentElement;
  const chosen = document.cookie.match(/(?:^|; )kpaas_lab_lang=(ko|en)/);
  const wanted = (navigator.languages || [navigator.language]).find((tag) => /^(ko|en)/i.test(tag)) || "en";
  page.lang = chosen ? chosen[1] : wanted.slice(0, 2).toLowerCase();

  const apply = () => {
    for (const element of document.querySelectorAll("[data-t]"))
      for (const [name, [english, korean]] of Object.entries(JSON.parse(element.dataset.t)))
        element.setAttribute(name, page.lang === "ko" ? korean : english);
    const heading = document.querySelector("h1");
    document.title = heading ? `${heading.innerText.trim()} · K-PaaS Lab` : "K-PaaS Lab";
    for (const button of document.querySelectorAll("[data-language]"))
      button.setAttribute("aria-pressed", String(button.dataset.language === page.lang));
  };
  document.addEventListener("DOMContentLoaded", apply);
  document.addEventListener("click", (event) => {
    const button = event.target.closest("[data-language]");
    if (!button) return;
    page.lang = button.dataset.language;
    const secure = location.protocol === "https:" ? "; secure" : "";
    document.cookie = `kpaas_lab_lang=${page.lang}; path=/; max-age=31536000; samesite=lax${secure}`;
    apply();
  });
})();
